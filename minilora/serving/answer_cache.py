"""Greedy answers that were given before: the same question again costs nothing.

Optional. An answer at temperature 0 is a function of the base, the adapters, the prompt's tokens
and a few settings. The key is a hash of all of them, and of the tenant::

    key = sha256(tag, length, value, tag, length, value, …)

**Every part has its tag and its length.** Joined without, ("ab", "c") and ("a", "bc") are one key,
and a tenant's name can be made to stand for an adapter's (vllm-project/vllm #44701 is about a name
and a salt that collide so). **An adapter is its content**, never its name, which moves on to other
weights (vllm-project/vllm #30931, #42125). **The tenant is in the key**, since a quick answer tells
that somebody asked the same before (CVE-2025-46570 measures that in vLLM's prefix cache).

The limit is in bytes for each tenant, and a tenant's new answers push out its own old ones only: a
shared limit would let one tenant see by its misses how busy another is.

Left out: answers that are drawn, whose next draw shall differ; prefixes; a file that outlives the
process; one computation for two who ask at once.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from ..text import hash_of_texts
from .requests import Answer, Finished, Known, Request


class Kept(NamedTuple):
    """An answer, and whose it is."""

    tenant: str
    known: Known
    nbytes: int


class AnswerCache:
    """Answers by key; ``memory``: bytes for each tenant. Any thread may call."""

    def __init__(self, base: str, memory: int = 4_000_000):
        if memory < 1:
            raise ValueError(f"memory: expected a positive number of bytes, got {memory!r}")
        self.base, self.memory = base, memory
        self.kept: dict[bytes, Kept] = {}
        self.order: dict[str, OrderedDict[bytes, int]] = {}  # of each tenant, oldest use first
        self.lock = threading.Lock()

    def find(self, request: Request) -> Known | None:
        """The answer to a request if this tenant had it before; None for one that is drawn."""
        if request.sampling.temperature > 0:
            return None
        key = key_of(request, self.base)
        with self.lock:
            kept = self.kept.get(key)
            if kept is None:
                return None
            self.order[kept.tenant].move_to_end(key)
            return kept.known

    def keep(self, answer: Answer, finished: Finished) -> None:
        """Keep an answer that came to its own end; others, and those drawn, are not kept."""
        request = answer.request
        if request.sampling.temperature > 0 or finished.reason not in ("stop", "length"):
            return
        logprobs = tuple(answer.logprobs)
        nbytes = 1000 + len(finished.text.encode()) + 40 * len(finished.ids)
        nbytes += sum(180 + 120 * len(each.top) for each in logprobs)
        if nbytes > self.memory:
            return
        key, tenant = key_of(request, self.base), request.tenant
        with self.lock:
            self.kept[key] = Kept(tenant, (finished, logprobs), nbytes)
            order = self.order.setdefault(tenant, OrderedDict())
            order[key] = nbytes
            order.move_to_end(key)
            while sum(order.values()) > self.memory:
                oldest, _ = order.popitem(last=False)
                del self.kept[oldest]


def key_of(request: Request, base: str) -> bytes:
    """The hash of all that a greedy answer depends on, and of whose it is."""
    sampling = request.sampling
    adapters = [(known.content, weight) for _, known, weight in request.adapter]
    parts: list[tuple[str, str | bytes]] = [
        ("tenant", request.tenant),
        ("base", base),
        *(("adapter", f"{content} {weight!r}") for content, weight in adapters),
        ("prompt", packed(request.prompt)),
        ("most", packed([sampling.max_new_tokens])),
        ("ends", packed(sampling.ends)),
        *(("stop", stop) for stop in request.stops),
        ("logprobs", repr(request.logprobs)),
        ("raw", repr(request.raw)),
    ]
    return hash_of_parts(parts)


def hash_of_parts(parts: Iterable[tuple[str, str | bytes]]) -> bytes:
    """The hash of (tag, value) pairs, each text with its length before it."""
    return hash_of_texts(text for pair in parts for text in pair)


def packed(numbers: Iterable[int]) -> bytes:
    """Numbers as eight bytes each."""
    return b"".join(struct.pack("<q", number) for number in numbers)
