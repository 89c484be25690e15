"""Data parallel: several processes train one adapter, and only A's and B's gradients travel.

    batch       = its parts, dealt out: rank k computes parts k, k + world, …
    g_k         = ∂/∂(A, B) Σ over rank k's answer tokens of -log p / answer tokens of *all* parts
    g           = Σ_k g_k                      one all-reduce of one flat tensor; then clip, AdamW

Every rank has the data and the seed, so it knows all parts of a batch, and how many answer tokens
they have, without asking. Each takes the same step, so nothing else need travel: with the shipped
base and the default adapter 86 kB a step, where a full fine-tune would send 5.3 MB. The sum of two
is the same in either order: two ranks end in the bits of one process with ``accumulate=2``. With
more, the order of the sum is the ring's, and the ranks agree with each other.

Dividing by the rank's own tokens and averaging would be a mean of means: a rank with one answer
token weighs as much as one with a hundred (huggingface/transformers #39392).

    torchrun --nproc-per-node 2 -m minilora train --data my.jsonl --out mine

torchrun starts the processes, on one machine or several, tells each its rank, and ends all when one
fails. The backend is torch's own: gloo on CPUs, nccl on cards. The flat tensor carries, behind the
gradients, what the ranks must agree on: the loss of each part, which parameters have a gradient,
and whether a rank was told to stop.

Left out: overlapping the sum with the backward, which DistributedDataParallel does in buckets, and
which 86 kB do not need; gradients in half precision; ranks that come and go within a run.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..lora.injection import trainable_parameters
from ..training.config import TrainConfig
from ..training.ranks import Alone, RankLost
from .environment import choose_card, meet, own_device, world_size

GRACE = 20.0  # seconds that a rank waits for the others once it was told to stop
POLL = 1e-4  # seconds between two looks at whether the others have answered
BYTES = 4  # of a float32


@contextlib.contextmanager
def join(device: str = "cpu", timeout: float = 1800.0) -> Iterator[Alone]:
    """The ranks that torchrun started, for ``train(…, ranks=ranks)``; without torchrun, ``Alone``.

    ``device``: what this rank computes on (``own_device``); it decides between gloo and nccl.
    ``timeout``: seconds that a rank waits for the others before it gives them up; a machine that
    vanishes is noticed no sooner. A process that ends is noticed at once. Warnings are the first
    rank's. Raises ``RankLost``, a ``ConnectionError``, when the others do not come, and
    ``ValueError`` within another join. After an error other than ``RankLost`` the same processes
    may join again (gloo).

    >>> with join() as ranks:
    ...     ranks.world, ranks.writes
    (1, True)
    """
    world = world_size()
    if world == 1:
        yield Alone()
        return
    device = own_device(device)
    if device.startswith("cuda"):
        choose_card(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if dist.is_initialized():
        raise ValueError(
            "this process has joined already: expected one join at a time, and new processes "
            "after RankLost, an interrupt, or any error with nccl"
        )
    try:
        meet(backend, timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise RankLost(f"the {world} ranks did not find each other: {first_line(error)}") from error
    ranks = Ranks(dist.get_rank(), world, device)
    try:
        with warnings.catch_warnings(), ending_in_words(ranks):
            if not ranks.writes:
                warnings.simplefilter("ignore")
            yield ranks
    except Exception as error:
        if backend == "gloo" and not isinstance(error, RankLost):
            dist.destroy_process_group()  # else it may wait for ranks that are gone
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def ending_in_words(ranks: Alone) -> Iterator[None]:
    """SIGTERM, by which torchrun ends its processes, asks for an end after the step in progress.

    After the last step nothing is cut off: what is left is to save, and torchrun waits 30 seconds.
    After ``RankLost`` it stays so: a process that is ending anyway shall say why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    before = signal.signal(signal.SIGTERM, lambda *_: ranks.interrupted.set())
    try:
        yield
    except RankLost:
        before = signal.getsignal(signal.SIGTERM)
        raise
    finally:
        # None: it was not set from Python, and cannot be set again
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class Ranks(Alone):
    """Several processes that take the same steps; ``sent`` counts the bytes handed to all-reduce.

    >>> ranks = Ranks(rank=1, world=2)
    >>> list(ranks.own(5)), ranks.writes, ranks.divide(TrainConfig(batch_size=32)).part_size
    ([1, 3], False, 16)
    """

    def __init__(self, rank: int, world: int, device: str = "cpu"):
        super().__init__()
        self.rank, self.world, self.device = rank, world, device
        self.stopping = False
        self.sent = 0

    def divide(self, config: TrainConfig) -> TrainConfig:
        """The same batch in at least as many parts as there are ranks."""
        size = config.batch_size
        enough = range(max(config.accumulate, self.world), size + 1)
        parts = next((parts for parts in enough if size % parts == 0), None)
        if parts is None:
            raise ValueError(
                f"a batch of {size} leaves nothing to compute for some of {self.world} ranks: "
                f"expected at least {self.world} examples a step (--batch), or fewer ranks"
            )
        return replace(config, accumulate=parts)

    def own(self, parts: int) -> range:
        """Which of a step's parts this rank computes."""
        if self.sharded and parts % self.world:
            raise ValueError(
                f"a sharded base is gathered by all ranks together: expected a multiple of "
                f"{self.world} parts a step, got {parts}; --accumulate {self.world}, no replay"
            )
        return super().own(parts)

    def add_up(self, model: nn.Module, losses: list[float]) -> list[float]:
        """Sum the gradients of all ranks in place, and the losses (0 for a part of another's)."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        present = [float(p.grad is not None) for p in parameters]
        told = [float(self.interrupted.is_set())]
        agreed = torch.tensor(
            [*losses, *present, *told], dtype=travels_as(model), device=parameters[0].device
        )
        pieces = [gradient_of(p).to(agreed) for p in parameters] + [agreed]
        flat = torch.cat(pieces)  # (values of all gradients + parts + parameters + 1)
        self.sum_over_ranks(flat)
        *gradients, agreed = flat.split([len(piece) for piece in pieces])
        *answers, stop = agreed.tolist()
        for p, gradient, some in zip(parameters, gradients, answers[len(losses) :], strict=True):
            if some:  # else no rank has one, and AdamW passes the parameter over
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad.copy_(gradient.view_as(p))
        self.stopping = stop > 0
        return answers[: len(losses)]

    def each(self, count: int, value: Callable[[int], float]) -> list[float]:
        """``value`` of every number below ``count``, each computed by one of the ranks."""
        if self.sharded:
            return super().each(count, value)
        values = torch.zeros(count, dtype=torch.float64, device=self.device)
        for number in self.own(count):
            values[number] = value(number)
        self.sum_over_ranks(values)
        return values.tolist()

    def stopped(self) -> bool:
        """Whether a rank was told to stop before the last sum: all read the same there.

        A rank that read its own flag would leave while the others wait for it in the next sum.
        """
        return self.stopping

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """Raise ``ValueError``, on every rank, unless all ranks have the same, value by value."""
        marks = torch.zeros(self.world, len(identity), dtype=torch.int64, device=self.device)
        marks[self.rank] = torch.tensor([mark(identity[name]) for name in sorted(identity)])
        self.sum_over_ranks(marks)
        for rank, row in enumerate(marks.tolist()):
            pairs = zip(sorted(identity), row, marks[0].tolist(), strict=True)
            if other := [name for name, here, there in pairs if here != there]:
                raise ValueError(
                    f"rank {rank} differs from rank 0 in: {', '.join(other)}; expected the same "
                    "examples, base, options and seed on every rank"
                )

    @contextlib.contextmanager
    def copy_of(self, file: Path) -> Iterator[Path]:
        """The first rank's file, where this rank can read it; the machines need no common disk."""
        content = file.read_bytes() if self.writes and file.is_file() else b""
        size = torch.tensor([len(content)], device=self.device)
        self.sum_over_ranks(size)
        sent = torch.zeros(int(size.item()), dtype=torch.uint8, device=self.device)
        if content:
            sent.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        if len(sent):  # else there is none, and whoever reads it says so
            self.sum_over_ranks(sent)
        if self.writes:
            yield file
            return
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / file.name
            if len(sent):
                own.write_bytes(bytes(sent.cpu().numpy()))
            yield own

    def notes(self, model: nn.Module, config: TrainConfig) -> list[str]:
        """How the work is shared out, and what travels, beside a full fine-tuning's gradients."""
        trained, everything = trainable_parameters(model)[:2]
        tensors = sum(p.requires_grad for p in model.parameters())
        travels = travels_as(model).itemsize * (trained + config.accumulate + tensors + 1)
        counts = [len(range(rank, config.accumulate, self.world)) for rank in range(self.world)]
        shared = f"{config.accumulate} parts of {config.part_size} examples a step"
        if max(counts) > min(counts):
            shared += f", {max(counts)} for some ranks and {min(counts)} for others"
        base = everything - trained or trained
        beside = f"{travels:,} bytes a step travel; of all weights it would be {BYTES * base:,}"
        return [f"{self.world} ranks: {shared}; {beside}"]

    def sum_over_ranks(self, values: Tensor) -> None:
        """Sum a tensor over all ranks, in place. Raises ``RankLost`` when they do not answer."""
        self.sent += values.numel() * values.element_size()
        try:
            work: Any = dist.all_reduce(values, async_op=True)
            self.wait_for(work)
            work.wait()
        except RuntimeError as error:
            raise RankLost(f"{self.gone()} ({first_line(error)})") from error

    def wait_for(self, work: Any) -> None:
        """Wait in Python, where a signal is heard, until the others have answered."""
        told: float | None = None
        while not work.is_completed():
            time.sleep(POLL)
            if self.interrupted.is_set():
                told = told or time.monotonic()
                if time.monotonic() - told > GRACE:
                    raise RankLost(f"{self.gone()} in {GRACE:.0f} seconds")

    def gone(self) -> str:
        """What is said of the others; the reason follows."""
        return f"rank {self.rank} of {self.world}: another rank ended or does not answer"


def travels_as(model: nn.Module) -> torch.dtype:
    """As what gradients and losses travel: float32, or float64 where that is trained.

    >>> travels_as(nn.Linear(2, 2).bfloat16()), travels_as(nn.Linear(2, 2).double())
    (torch.float32, torch.float64)
    """
    dtypes = (p.dtype for p in model.parameters() if p.requires_grad)
    return reduce(torch.promote_types, dtypes, torch.float32)


def gradient_of(parameter: Tensor) -> Tensor:
    """A parameter's gradient as one row; zeros where it has none."""
    gradient = parameter.grad
    return torch.zeros(parameter.numel()) if gradient is None else gradient.flatten()


def mark(value: Any) -> int:
    """A number that differs where a value, which JSON can hold, does.

    >>> mark({"seed": 0}) == mark({"seed": 1})
    False
    """
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def first_line(error: BaseException) -> str:
    """The first sentence of what an error says, without the place in torch's source."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or line
