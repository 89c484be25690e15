"""The adapters of a base by name: read strictly, known by their content, in memory or on disk.

**The name is only a name.** What an adapter is, is its content: the sha256 of its config and its
tensors, as the hub's. A reading that finds other content than was loaded under the name is an
error, not an update (vllm-project/vllm #42125 tells how an old cache answered for new weights).

**Nobody is answered by the base instead.** An unknown name, a wrong key in a file, an adapter of
another base: each is an error that says so (vllm-project/vllm #34186, huggingface/peft #2090 and
text-generation-inference #2505 are about servers that answered with the base).

Only methods that add ``B A`` to a weight go in: LoRA, rsLoRA, and PiSSA once it is converted. DoRA
changes the weight's columns, IA³ the activations, a prompt the text; they are refused by name.

Reading happens in the thread that asks, or with ``fetch`` in one of the store's own: never in the
thread that computes. A slow folder takes one of these threads, however many rows wait for it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..formats.base_fingerprint import fingerprint
from ..formats.combined_files import parts_of
from ..formats.mismatches import beyond_linears, check_fit
from ..formats.peft_files import META_BASE, AdapterFiles, lora_config, read_adapter_files
from ..formats.save_and_load import exactly
from ..hub.adapter import Adapter
from ..lora.attached import adapters_of
from ..lora.hyperparameters import STARTS, check_rank
from ..lora.injection import explain_match
from ..lora.linears import made_beside
from ..lora.paths import unwrapped
from ..lora.twin import twin
from ..text import did_you_mean, listed
from .adapter_cache import AdapterCache, BeingRead, NoRoom, Resident
from .layer import Factors, Weighted

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
        self.base, self.max_rank = twin(base), max_rank  # plain modules, to check files against
        self.fingerprint = fingerprint(base)
        self.cache = AdapterCache(memory)
        self.known: dict[str, Known] = {}
        self.lock = threading.Lock()  # of ``known``
        self.readers = ThreadPoolExecutor(2, thread_name_prefix="adapter")

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
        content, resident = self.read(Path(folder), any_base)
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

    def read(self, folder: Path, any_base: bool = False) -> tuple[str, Resident]:
        """The content's identity and the factors of a folder, checked against the base."""
        files = read_adapter_files(folder)
        check_additive(files)
        fitting = check_fit(self.base, files, base=lambda: self.fingerprint)
        content = content_of(files)  # refuses what is trained besides A and B
        if fitting.other_base and META_BASE in files.metadata and not any_base:
            raise ValueError(
                f"the adapter in {folder} {fitting.other_base}: load it with any_base=True only if "
                "that is meant, as for a base in four bits"
            )
        explain_match(self.base, exactly(fitting.names, fitting.config))  # tied weights, and such
        return content, self.resident(files)

    def read_again(self, name: str, known: Known) -> Resident:
        """An adapter that was dropped from memory. Raises ``ValueError`` if it has changed."""
        files = read_adapter_files(known.folder)
        if (content := content_of(files)) != known.content:  # an equal one was checked by ``load``
            raise ValueError(
                f"{name}: the files in {known.folder} are no longer those that were loaded "
                f"(content {known.content[:12]}, now {content[:12]}): load it again, replace=True"
            )
        return self.resident(files)

    def resident(self, files: AdapterFiles) -> Resident:
        """The factors as rows take them."""
        factors = {}
        for path, part in parts_of(files).items():
            dtype = made_beside(self.base.get_submodule(path))["dtype"]
            B = (part.scaling * part.B.to(dtype)).T.contiguous()
            factors[path] = Factors(part.A.to(dtype).contiguous(), B)
        return Resident(factors, sum(pair.A.nbytes + pair.B.nbytes for pair in factors.values()))

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

    def fetch(self, chosen: Chosen) -> Future[Held]:
        """``hold`` what ``check`` found, off the caller's thread; at once if all is in memory."""
        held: Future[Held] = Future()
        if all(known.content in self.cache for _, known, _ in chosen):
            self.try_to_hold(chosen, held)
        else:
            self.readers.submit(self.try_to_hold, chosen, held)
        return held

    def try_to_hold(self, chosen: Chosen, held: Future[Held]) -> None:
        """One try; where another thread reads an adapter of these, the next when it has ended."""
        try:
            held.set_result(self.hold_chosen(chosen, wait=False))
        except BeingRead as being:
            being.reading.add_done_callback(
                lambda _: self.readers.submit(self.try_to_hold, chosen, held)
            )
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


def content_of(files: AdapterFiles) -> str:
    """The hub's identity of an adapter: the sha256 of its config and its tensors."""
    config, wrong = lora_config(files.config)
    wrong += [] if config is None else beyond_linears(config, files.tensors)
    if wrong or config is None:
        raise ValueError(f"{files.folder}: {listed(wrong)}")
    return Adapter(files.config, config, files.tensors, None).content_id


def check_additive(files: AdapterFiles) -> None:
    """Raise ``ValueError`` for a method that does more than add ``B A`` to a weight."""
    kind = str(files.config.get("peft_type", "LORA"))
    if kind == "LORA" and files.config.get("use_dora"):
        kind = "DoRA"
    if kind == "LORA" and files.config.get("init_lora_weights") in STARTS:
        kind = "A and B of a changed base (load_adapter, then save_adapter makes it plain LoRA)"
    if kind != "LORA":
        raise ValueError(
            f"{files.folder} holds {kind}: a row adds B A to its weights, as "
            "LoRA and rsLoRA do; merge other methods into a base of their own"
        )
