"""Who waits, for a turn or for an adapter, and who gets the next free row.

    push → turns (fairness.py) → loading, while the adapter is read → next, which gets a row

An adapter is read off the engine's thread, and those whose adapters are there go ahead meanwhile.
An adapter that was read stays pinned until its answer has a row. Where the memory has no room for
another's, those whose tenants have all the rows they may have let go of theirs, and fetch them
again when they may have a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from .adapter_cache import NoRoom
from .adapter_store import AdapterStore, Held, is_ready
from .fairness import DeficitRoundRobin, Shares
from .requests import Answer

Entry = tuple[Answer, "Future[Held]"]  # an answer and its adapters


class Waiting:
    """The answers that have no row yet. ``ring`` is called when an adapter was read.

    One thread at a time may use it, the engine's.
    """

    def __init__(self, bank: AdapterStore, slots: int, ring: Callable[[Any], None]):
        self.bank, self.ring = bank, ring
        self.turns: DeficitRoundRobin[Answer] = DeficitRoundRobin()
        self.shares = Shares(slots)
        self.loading: deque[Entry] = deque()  # the readers have them

    def __len__(self) -> int:
        return len(self.turns) + len(self.loading)

    def push(self, answer: Answer) -> None:
        """Queue an answer behind its tenant's others."""
        self.shares.asks(answer.request.tenant)
        self.turns.push(answer.request.tenant, answer, answer.request.cost)

    def next(self, in_rows: Iterable[Answer], rested: bool) -> Entry | None:
        """The next answer in turn whose adapter is in memory; the others' are being read.

        ``in_rows``: the answers that have rows; ``rested``: enough tokens came since a tenant
        last got a further row.
        """
        rows = [answer.request.tenant for answer in in_rows]
        full = self.shares.full(rows, rested)
        for entry in self.loading:
            if is_ready(entry[1]) and entry[0].request.tenant not in full:
                self.loading.remove(entry)
                return entry
        for place, (again, future) in enumerate(self.loading):
            no_room = future.done() and not is_ready(future)  # there may be some by now
            if no_room and again.request.tenant not in full:
                self.let_go(full)
                self.loading[place] = again, self.bank.fetch(again.request.adapter)
                break
        while self.turns:
            # with those that only miss a row: nobody waits behind an adapter that is read slowly
            soon = [answer.request.tenant for answer, future in self.loading if future.done()]
            answer = self.turns.pop(self.shares.full(rows + soon, rested))
            if answer is None:
                return None
            future = self.bank.fetch(answer.request.adapter)
            if is_ready(future):
                return answer, future
            self.loading.append((answer, future))
            future.add_done_callback(self.ring)
        return None

    def let_go(self, full: set[str]) -> None:
        """Unpin the adapters of those that could not have a row now anyway."""
        for place, (answer, future) in enumerate(self.loading):
            ready = future.done() and future.exception() is None
            if ready and answer.request.tenant in full:
                again: Future[Held] = Future()
                again.set_exception(NoRoom("others needed the memory"))
                self.loading[place] = answer, again
                self.release(future)

    def put_back(self, entry: Entry) -> None:
        """It is the first of the next step."""
        self.loading.appendleft(entry)

    def refund(self, answer: Answer) -> None:
        """Credit the tenant with the tokens that an answer did not need."""
        unused = answer.request.sampling.max_new_tokens - len(answer.ids)
        self.turns.refund(answer.request.tenant, unused)

    def remove(self, answer: Answer) -> bool:
        """Take an answer out; False if it does not wait here."""
        for entry in self.loading:
            if entry[0] is answer:
                self.loading.remove(entry)
                entry[1].add_done_callback(self.release)
                return True
        return self.turns.remove(answer)

    def release(self, future: Future[Held]) -> None:
        """Unpin adapters that nobody waits for any more."""
        if future.exception() is None:
            self.bank.release(future.result())

    def only_reads(self) -> bool:
        """Whether everything waits for adapters that are being read."""
        return bool(self.loading) and not any(future.done() for _, future in self.loading)

    def fail_all(self, error: Exception) -> None:
        """Every answer ends with an error."""
        for answer, future in self.loading:
            future.add_done_callback(self.release)
            answer.fail(error)
        self.loading.clear()
        while (next_one := self.turns.pop()) is not None:
            next_one.fail(error)
