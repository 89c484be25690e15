"""The adapters of a base by name: read strictly, known by their content, in memory or on disk.

**The name is only a name.** What an adapter is, is its content: the sha256 of its config and its
tensors, as the hub's. A reading that finds other content than was loaded under the name is an
error, not an update (vllm-project/vllm #42125 tells how an old cache answered for new weights).

**Nobody is answered by the base instead.** An unknown name, a wrong key in a file, an adapter of
another base: each is an error that says so (vllm-project/vllm #34186, huggingface/peft #2090 and
text-generation-inference #2505 are about servers that answered with the base).

Reading happens in the thread that asks, or with ``fetch`` in one of the store's own
(disk_readers.py): never in the thread that computes. A slow folder takes one of these threads,
however many rows wait for it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..lora.attached import adapters_of
from ..lora.hyperparameters import check_rank
from ..lora.paths import unwrapped
from ..text import did_you_mean
from .adapter_cache import AdapterCache, BeingRead, NoRoom, Resident
from .adapter_files import AdapterReader
from .disk_readers import DiskReaders
from .layer import Weighted

Choice = str | Sequence[tuple[str, float]] | None  # a row's adapter, several with weights, or none


class Known(NamedTuple):
    """What the bank remembers of a name, whether its adapter is in memory or not."""

    folder: Path
    content: str  # sha256 of config and tensors
    ranks: Mapping[str, int]  # of each module
    nbytes: int


Chosen = tuple[tuple[str, Known, float], ...]  # a choice as the names stood when it was checked


class Held(NamedTuple):
    """Adapters that a row will get, pinned in memory until ``AdapterBank.release``.

    ``parts`` goes to ``AdapterRows.admit``. ``key`` is the content of what the row computes with,
    () for the base: what a cache of prefixes must have in its key.
    """

    parts: tuple[Weighted, ...]
    key: tuple[tuple[str, float], ...]


class AdapterStore:
    """What the adapters of one base are called, and what they hold.

    ``max_rank``: the highest rank that a row can have; ``memory``: the bytes that adapters may take
    (None: any number). Raises ``ValueError`` for a model that has adapters.
    """

    def __init__(self, base: nn.Module, max_rank: int = 16, memory: int | None = None):
        base = unwrapped(base)
        if adapted := [path for path, _ in adapters_of(base)]:
            raise ValueError(
                f"expected a base without adapters, got one at {adapted[0]}: unload(model) first"
            )
        check_rank(max_rank)
        if memory is not None and memory < 1:
            raise ValueError(f"memory must be a positive number of bytes, or None, got {memory}")
        self.reader = AdapterReader(base)
        self.base, self.fingerprint = self.reader.base, self.reader.fingerprint
        self.max_rank = max_rank
        self.cache = AdapterCache(memory)
        self.known: dict[str, Known] = {}
        self.lock = threading.Lock()  # of ``known``
        self.readers = DiskReaders()

    def load(
        self, name: str, folder: str | Path, *, replace: bool = False, any_base: bool = False
    ) -> str:
        """Read PEFT's two files under a name; returns the content's sha256.

        The same content under the same name changes nothing. Other content needs ``replace=True``:
        requests that were made keep what they have, later ones get the new. ``any_base=True`` takes
        an adapter made on a base with other values, as one trained on floats for one in four bits.
        Raises one ``ValueError`` that names everything that does not fit, as ``load_adapter``; a
        base that is not ours, a rank above ``max_rank``, and an adapter above ``memory`` too. Any
        thread may call.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"expected a name for the adapter, got {name!r}")
        content, resident = self.reader.read(Path(folder), any_base)
        ranks = {path: len(factors.A) for path, factors in resident.factors.items()}
        if too_high := [path for path, rank in ranks.items() if rank > self.max_rank]:
            path = max(too_high, key=lambda path: ranks[path])
            raise ValueError(
                f"{name}: {path} has rank {ranks[path]}, the bank max_rank={self.max_rank}: "
                f"make it with max_rank={ranks[path]}, or cut the adapter to a lower rank"
            )
        with self.lock:
            before = self.known.get(name)
            if before is not None and before.content != content and not replace:
                raise ValueError(
                    f"{name!r} is the name of other weights (content {before.content[:12]}, "
                    f"the new ones {content[:12]}): unload it first, or load with replace=True"
                )
            # no room beside pinned ones: read when asked for; a copy elsewhere: in memory soon
            with contextlib.suppress(NoRoom, BeingRead):
                self.cache.hold(content, lambda: resident, wait=False)
                self.cache.release(content)
            self.known[name] = Known(Path(folder), content, ranks, resident.nbytes)
        if before is not None:
            self.forget(before.content)
        return content

    def unload(self, name: str) -> None:
        """Forget a name. Requests that were made keep what it meant. Raises ``ValueError``."""
        with self.lock:
            content = self.find(name).content
            del self.known[name]
        self.forget(content)

    def forget(self, content: str) -> None:
        """Free the memory of a content that no name stands for any more."""
        if all(known.content != content for known in list(self.known.values())):
            self.cache.drop(content)

    def names(self) -> list[str]:
        """The adapters that a row may name, in memory or not, sorted."""
        return sorted(self.known)

    def find(self, name: str) -> Known:
        """What is known of a name. Raises ``ValueError`` with the nearest names."""
        if name not in self.known:
            names = ", ".join(self.names()) or "none; bank.load(name, folder) adds one"
            hint = did_you_mean(str(name), list(self.known), f"known are: {names}")
            raise ValueError(f"there is no adapter {name!r}; {hint}")
        return self.known[name]

    def read_again(self, name: str, known: Known) -> Resident:
        """An adapter that was dropped from memory. Raises ``ValueError`` if it has changed."""
        try:
            return self.reader.read_again(known.folder, known.content)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def check(self, choice: Choice) -> Chosen:
        """A row's adapters with their weights; reads nothing. Raises ``ValueError``.

        Only None means the base: an empty list is a mistake, and an iterator can be read once.
        """
        if choice is not None and (
            not isinstance(choice, str | list | tuple) or choice in ([], ())
        ):
            raise ValueError(
                "expected an adapter's name, a list of names with weights, or None for the base, "
                f"got {choice!r:.80}"
            )
        parts = []
        for each in [(choice, 1.0)] if isinstance(choice, str) else choice or ():
            pair = isinstance(each, tuple | list) and len(each) == 2
            if not pair or not isinstance(each[0], str):
                raise ValueError(f"expected an adapter and its weight, got {each!r:.80}")
            name, weight = each
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"{name}: expected a finite weight, got {weight!r}")
            parts.append((name, self.find(name), float(weight)))
        ranks: dict[str, int] = {}
        for _, known, _ in parts:
            for path, rank in known.ranks.items():
                ranks[path] = ranks.get(path, 0) + rank
        if ranks and max(ranks.values()) > self.max_rank:
            raise ValueError(
                f"{', '.join(name for name, *_ in parts)}: ranks of {max(ranks.values())} together,"
                f" the bank has max_rank={self.max_rank}: name fewer, or raise max_rank"
            )
        total = sum({known.content: known.nbytes for _, known, _ in parts}.values())
        if self.cache.memory is not None and total > self.cache.memory:
            raise ValueError(
                f"a row with {', '.join(name for name, *_ in parts)} has no room: {total:,} bytes, "
                f"memory={self.cache.memory:,}; name fewer, or raise memory"
            )
        return tuple(parts)

    def hold(self, choice: Choice) -> Held:
        """Pin a row's adapters in memory, reading those that are not there; any thread may call.

        Raises ``ValueError`` for this row: unknown, changed or gone from disk, no room.
        """
        return self.hold_chosen(self.check(choice))

    def hold_chosen(self, chosen: Chosen, wait: bool = True) -> Held:
        """``hold`` by content, whatever the names mean by now; ``wait`` as in the cache."""
        parts: list[Weighted] = []
        key: list[tuple[str, float]] = []
        try:
            for name, known, weight in chosen:
                read = partial(self.read_again, name, known)
                resident = self.cache.hold(known.content, read, wait)
                key.append((known.content, weight))
                parts.append((resident.factors, weight))
        except BaseException:
            self.release(Held((), tuple(key)))
            raise
        return Held(tuple(parts), tuple(key))

    def in_memory(self, chosen: Chosen) -> bool:
        """Whether all adapters of a choice are there."""
        return all(known.content in self.cache for _, known, _ in chosen)

    def has_room(self, chosen: Chosen) -> bool:
        """Whether a choice could be held just now, so that reading it is not for nothing."""
        return self.cache.has_room({known.content: known.nbytes for _, known, _ in chosen})

    def fetch(self, chosen: Chosen, tenant: str = "") -> Future[Held]:
        """``hold`` what ``check`` found, off the caller's thread; at once if all is in memory."""
        held: Future[Held] = Future()
        if self.in_memory(chosen):
            self.try_to_hold(chosen, tenant, held)
        else:
            self.readers.submit(tenant, partial(self.try_to_hold, chosen, tenant, held))
        return held

    def try_to_hold(self, chosen: Chosen, tenant: str, held: Future[Held]) -> None:
        """One try; where another thread reads an adapter of these, the next when it has ended."""
        again = partial(self.try_to_hold, chosen, tenant, held)
        try:
            held.set_result(self.hold_chosen(chosen, wait=False))
        except BeingRead as being:
            being.reading.add_done_callback(lambda _: self.readers.submit(tenant, again))
        except BaseException as error:
            held.set_exception(error)

    def release(self, held: Held) -> None:
        """Unpin what ``hold`` pinned; a row that was admitted has its own copy."""
        for content, _ in held.key:
            self.cache.release(content)
            self.forget(content)  # its name may have gone meanwhile


def is_ready(future: Future[Held]) -> bool:
    """Whether a reading has ended, with more to say than that there was no room just then."""
    return future.done() and not isinstance(future.exception(), NoRoom)
