"""Adapters in memory, the least recently used ones dropped: a cache by bytes, for many threads.

    hold      the adapter, read from disk if it is not here, and pinned
    release   the pin goes; it may be dropped when room is needed

The rules, each the answer to a complaint about a server:

- The key is the adapter's content, never its name: two names of one content lie here once, and new
  weights under an old name are another entry (vllm-project/vllm #42125, sgl-project/sglang #8263).
- **One reader an adapter.** A request for an adapter that is being read waits for that reading, or
  is told of it (``wait=False``). A request for another waits for nothing, so a slow or broken
  folder holds nobody up.
- A pinned adapter is never dropped, and neither is the one that was just read: dropped at once, it
  would be read again for the request that it was read for, forever.
- An adapter that has no room beside the pinned ones is an error for those who asked for it.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import NamedTuple

from .layer import Factors


class Resident(NamedTuple):
    """An adapter in memory: its factors by module path, and the bytes that they take."""

    factors: Mapping[str, Factors]
    nbytes: int


class NoRoom(ValueError):
    """The memory is full of pinned adapters: ask again when one is released."""


class BeingRead(Exception):
    """Another thread reads this adapter; ``reading`` is done when it has ended."""

    def __init__(self, reading: Future[None]):
        super().__init__("another thread reads this adapter")
        self.reading = reading


class AdapterCache:
    """At most ``memory`` bytes of adapters (None: no limit).

    >>> import torch
    >>> one = Resident({"q": Factors(torch.ones(1, 4), torch.ones(1, 4))}, nbytes=32)
    >>> cache = AdapterCache(memory=40)
    >>> cache.hold("a", lambda: one) is one, cache.nbytes
    (True, 32)
    >>> cache.release("a")
    >>> _ = cache.hold("b", lambda: one)
    >>> list(cache.residents)
    ['b']
    """

    def __init__(self, memory: int | None = None):
        self.memory = memory
        self.residents: OrderedDict[str, Resident] = OrderedDict()  # the least recently used first
        self.pins: Counter[str] = Counter()
        self.readings: dict[str, Future[None]] = {}
        self.lock = threading.Lock()

    def __contains__(self, content: str) -> bool:
        return content in self.residents

    @property
    def nbytes(self) -> int:
        """Bytes of all adapters here."""
        return sum(resident.nbytes for resident in self.residents.values())

    def hold(self, content: str, read: Callable[[], Resident], wait: bool = True) -> Resident:
        """The adapter of this content, pinned. Raises what ``read`` raises, or ``ValueError``.

        While another thread reads it, this one waits, or gets ``BeingRead`` with ``wait=False``.
        """
        while True:
            with self.lock:
                if content in self.residents:
                    self.residents.move_to_end(content)
                    self.pins[content] += 1
                    return self.residents[content]
                reading = self.readings.get(content)
                if reading is None:
                    mine = self.readings[content] = Future()
                    break
            if not wait:
                raise BeingRead(reading)
            reading.exception()  # another's, from another folder maybe: its error is not ours
        try:
            resident = read()
            with self.lock:
                self.insert(content, resident)
                self.pins[content] += 1
        except BaseException as error:
            self.end_reading(content)
            mine.set_exception(error)
            raise
        self.end_reading(content)
        mine.set_result(None)
        return resident

    def end_reading(self, content: str) -> None:
        """Whoever asks from now on looks into the cache, or reads anew."""
        with self.lock:
            del self.readings[content]

    def insert(self, content: str, resident: Resident) -> None:
        """Put an adapter in, and drop others for it. The caller has the lock."""
        if self.memory is not None:
            pinned = sum(self.residents[each].nbytes for each in self.pins)
            if pinned + resident.nbytes > self.memory:
                full = ValueError if resident.nbytes > self.memory else NoRoom
                raise full(
                    f"an adapter of {resident.nbytes:,} bytes has no room: memory={self.memory:,}, "
                    f"of which {pinned:,} are in use; raise memory, or ask again later"
                )
            for other in list(self.residents):
                if self.nbytes + resident.nbytes <= self.memory:
                    break
                if not self.pins[other]:
                    del self.residents[other]
        self.residents[content] = resident

    def has_room(self, sizes: Mapping[str, int]) -> bool:
        """Whether adapters (bytes by content) would fit beside the pinned ones just now."""
        with self.lock:
            pinned = sum(self.residents[each].nbytes for each in self.pins)
            more = sum(size for content, size in sizes.items() if content not in self.pins)
            return self.memory is None or pinned + more <= self.memory

    def release(self, content: str) -> None:
        """Take one pin away."""
        with self.lock:
            self.pins[content] -= 1
            if self.pins[content] <= 0:
                del self.pins[content]

    def drop(self, content: str) -> None:
        """Forget an adapter, unless it is pinned; then it goes when room is needed."""
        with self.lock:
            if not self.pins[content]:
                self.residents.pop(content, None)
