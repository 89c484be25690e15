"""Ranks as threads of one process: the same ``Ranks``, with a barrier where torch has all-reduce.

A rank that leaves early, or fails, breaks the barrier: the others see ``RankLost``, as they do when
a process ends. Torch's random state is one for all threads, so runs with dropout need processes.
"""

import copy
import threading

import torch

from minilora.scale.distributed import Ranks
from minilora.training.ranks import RankLost

PATIENCE = 20.0  # seconds, until a rank that is waited for counts as gone


class Meeting:
    """Where the threads of one run meet to add up."""

    def __init__(self, world):
        self.barrier, self.given, self.over = threading.Barrier(world), [None] * world, False

    def sum(self, rank, values):
        """The sum of all ranks' tensors, in the order of the ranks."""
        if self.over:
            raise threading.BrokenBarrierError
        self.given[rank] = values.clone()
        self.barrier.wait(PATIENCE)
        total = sum(self.given[1:], self.given[0].clone())
        self.barrier.wait(PATIENCE)  # before anyone gives the next
        return total


class ThreadRanks(Ranks):
    """A rank that is a thread."""

    def __init__(self, rank, meeting):
        super().__init__(rank, len(meeting.given))
        self.meeting, self.sums = meeting, 0

    def sum_over_ranks(self, values):
        self.sent += values.numel() * values.element_size()
        self.sums += 1
        try:
            values.copy_(self.meeting.sum(self.rank, values))
        except threading.BrokenBarrierError as error:
            raise RankLost(self.gone()) from error


def together(world, work):
    """``work(ranks)`` of every rank at once; what each returned, or the exception that it raised.

    Whoever ends while others still wait for a sum leaves them without one.
    """
    meeting = Meeting(world)
    results = [None] * world

    def run(rank):
        torch.set_num_threads(1)
        try:
            results[rank] = work(ThreadRanks(rank, meeting))
        except BaseException as error:
            results[rank] = error
        finally:
            meeting.over = True
            if meeting.barrier.n_waiting:
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), "a rank hangs"
    return results


def copies(model, world):
    """The same model for every rank; made before the threads, which share torch's random state."""
    return [copy.deepcopy(model) for _ in range(world)]
