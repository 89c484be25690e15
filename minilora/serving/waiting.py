"""Who waits, for a turn or for an adapter, and who gets the next free row.

    push → turns (fairness.py) → loading, while the adapter is read → next, which gets a row

An adapter is read outside the engine's thread, and requests whose adapters are there go ahead
meanwhile. An adapter that was read stays pinned until its answer has a row. So a tenant's adapters
are read only while it may have more rows, and few ahead. If the memory still has no room for
another tenant's adapter, the requests of tenants that have all their rows release their adapters,
and fetch them again when they may have a row. Nothing is read while there is no room for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from .adapter_store import AdapterStore, Held, is_ready
from .fairness import DeficitRoundRobin, Shares
from .requests import Answer

Ready = tuple[Answer, "Future[Held]"]  # an answer and its adapters
READINGS = 4  # adapters that are read ahead for a tenant


class Waiting:
    """The answers that have no row yet. ``wake_up`` is called when an adapter was read.

    One thread at a time may use it, the engine's.
    """

    def __init__(self, bank: AdapterStore, slots: int, wake_up: Callable[[Any], None]):
        self.bank, self.wake_up = bank, wake_up
        self.turns: DeficitRoundRobin[Answer] = DeficitRoundRobin()
        self.shares = Shares(slots)
        # None: its adapter is on disk, and nobody reads it yet
        self.loading: deque[tuple[Answer, Future[Held] | None]] = deque()

    def __len__(self) -> int:
        return len(self.turns) + len(self.loading)

    def push(self, answer: Answer) -> None:
        """Queue an answer behind its tenant's others."""
        self.shares.asks(answer.request.tenant)
        self.turns.push(answer.request.tenant, answer, answer.request.cost)

    def next(self, in_rows: Iterable[Answer], several: bool) -> Ready | None:
        """The next answer in turn whose adapter is in memory; the others' are being read.

        ``in_rows``: the answers that have rows; ``several``: whether a tenant beside others
        may have several rows now: enough tokens came since one last got a further row.
        """
        rows = [answer.request.tenant for answer in in_rows]
        full = self.shares.full(rows, several)
        for answer, future in self.loading:
            if future is not None and is_ready(future) and answer.request.tenant not in full:
                self.loading.remove((answer, future))
                return answer, future
        rows += self.ready()  # with those that only miss a row
        while self.turns:
            following = self.turns.pop(self.shares.full(rows, several))
            if following is None:
                return None
            adapter, future = following.request.adapter, None
            if self.bank.in_memory(adapter):
                future = self.bank.fetch(adapter, following.request.tenant)
                if is_ready(future):
                    return following, future
                future.add_done_callback(self.wake_up)
            self.loading.append((following, future))
        return None

    def ready(self) -> list[str]:
        """The tenants of those that miss nothing but a row."""
        entries = ((answer, future) for answer, future in self.loading if future is not None)
        return [answer.request.tenant for answer, future in entries if is_ready(future)]

    def read_ahead(self, in_rows: Iterable[Answer]) -> None:
        """Have adapters read, in the order of the answers, for those who may have a row soon."""
        full = self.shares.full([answer.request.tenant for answer in in_rows] + self.ready())
        reading: dict[str, set[tuple[str, ...]]] = {}
        for answer, future in self.loading:
            if future is not None and not future.done():
                reading.setdefault(answer.request.tenant, set()).add(contents(answer))
        for place, (answer, future) in enumerate(self.loading):
            tenant = answer.request.tenant
            no_room = future is not None and future.done() and not is_ready(future)
            if tenant in full or not (future is None or no_room):
                continue
            own, asked = reading.setdefault(tenant, set()), contents(answer)
            if asked not in own and len(own) >= READINGS:
                continue
            if not self.bank.has_room(answer.request.adapter):
                self.let_go(full)
                if not self.bank.has_room(answer.request.adapter):
                    continue
            own.add(asked)
            again = self.bank.fetch(answer.request.adapter, tenant)
            self.loading[place] = answer, again
            again.add_done_callback(self.wake_up)

    def let_go(self, full: set[str]) -> None:
        """Unpin the adapters of those that could not have a row now anyway."""
        for place, (answer, future) in enumerate(self.loading):
            if future is not None and future.done() and answer.request.tenant in full:
                self.loading[place] = answer, None
                self.release(future)

    def put_back(self, entry: Ready) -> None:
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
                self.release_when_done(entry[1])
                return True
        return self.turns.remove(answer)

    def release(self, future: Future[Held]) -> None:
        """Unpin adapters that nobody waits for any more."""
        if future.exception() is None:
            self.bank.release(future.result())

    def release_when_done(self, future: Future[Held] | None) -> None:
        """The same, of adapters that may still be read."""
        if future is not None:
            future.add_done_callback(self.release)

    def only_reads(self) -> bool:
        """Whether everything waits for adapters that are being read."""
        done = (future is not None and is_ready(future) for _, future in self.loading)
        return bool(self.loading) and not any(done)

    def fail_all(self, error: Exception) -> None:
        """Every answer ends with an error."""
        for answer, future in self.loading:
            self.release_when_done(future)
            answer.fail(error)
        self.loading.clear()
        while (next_one := self.turns.pop()) is not None:
            next_one.fail(error)


def contents(answer: Answer) -> tuple[str, ...]:
    """What an answer's adapters are."""
    return tuple(known.content for _, known, _ in answer.request.adapter)
