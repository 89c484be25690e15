"""From examples to tensors: tokens and labels, padded or packed.

Labels are -100 wherever there is nothing to learn: in the prompt, in the padding. The loss sees
only the answers and the token that ends each (model/turns.py).

Padding puts one example in a row and fills up on the right; a causal model never looks there, so no
mask is needed. Packing puts several in a row and numbers them. The attention mask then lets a token
see its own example only, and since rotary positions are relative, each example is computed as if it
stood alone (tested: tests/training/test_batches.py).

Which examples a step gets, and which of the two it does with them, order.py decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..model.own_forms import END_OF_TEXT
from .examples import Conversation, Document, Example, Learnt

IGNORE = -100  # cross_entropy's mark for "no label here"


@runtime_checkable
class ChatTokenizer(Protocol):
    """What training asks of a tokenizer; ``minilora.Tokenizer`` answers it."""

    def encode_turns(
        self, messages: list[dict[str, str]], **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and which of them are an answer or the token that ends it."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids and labels of the same length."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Batch:
    """``ids`` and ``labels``, both (rows, time), of which ``padding`` places hold no token.

    ``segments`` (rows, time) numbers the examples of packed rows from 1; padded rows have None.
    """

    ids: Tensor
    labels: Tensor
    segments: Tensor | None
    padding: int = 0

    @property
    def tokens(self) -> int:
        """How many places hold a token of an example."""
        return self.ids.numel() - self.padding

    @property
    def answer_tokens(self) -> int:
        """How many labels count, the first column aside: nothing predicts it."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(self.ids.to(device), self.labels.to(device), segments, self.padding)


def encode(tokenizer: ChatTokenizer, example: Example | Conversation) -> Encoded:
    """A conversation in the tokenizer's form; only the answers and their ends are labels."""
    variables = example.variables() if isinstance(example, Conversation) else {}
    ids, learnt = tokenizer.encode_turns(example.as_messages(), **variables)
    labels = [token if is_learnt else IGNORE for token, is_learnt in zip(ids, learnt, strict=True)]
    return Encoded(ids, labels)


def encode_document(tokenizer: Any, document: Document) -> Encoded:
    """A text, its first token where the tokenizer adds one, and its end: all of them labels."""
    raw = tokenizer.raw
    first = raw.encode("a").ids[:1] if tokenizer.adds_bos else []
    end = raw.token_to_id(END_OF_TEXT)  # a turn's end only where the vocabulary has no other
    ids = [*first, *tokenizer.encode_text(document.text), tokenizer.eos_id if end is None else end]
    return Encoded(ids, list(ids))


def encode_one(tokenizer: ChatTokenizer, example: Learnt) -> Encoded:
    """Anything to learn from, whole."""
    if isinstance(example, Document):
        return encode_document(tokenizer, example)
    return encode(tokenizer, example)


def windows(row: Encoded, max_length: int) -> list[Encoded]:
    """A long text in pieces of at most ``max_length`` tokens; one token alone teaches nothing."""
    starts = range(0, len(row.ids), max_length)
    pieces = [(row.ids[i : i + max_length], row.labels[i : i + max_length]) for i in starts]
    return [Encoded(ids, labels) for ids, labels in pieces if len(ids) > 1]


def encode_all(
    tokenizer: ChatTokenizer, examples: Sequence[Learnt], max_length: int
) -> list[Encoded]:
    """All examples that fit ``max_length`` tokens, with a warning where some do not.

    Only documents are cut, into windows; an answer never is. Raises ``ValueError`` when no example
    fits.
    """
    encoded: list[Encoded] = []
    for example in examples:
        row = encode_one(tokenizer, example)
        encoded += windows(row, max_length) if isinstance(example, Document) else [row]
    fitting = [row for row in encoded if len(row.ids) <= max_length]
    lengths = [len(row.ids) for row in encoded]
    if not fitting:
        raise ValueError(
            f"no example fits max_length={max_length} tokens: {len(encoded)} given, the shortest "
            f"has {min(lengths, default=0)}; raise max_length or shorten the examples"
        )
    if too_long := len(encoded) - len(fitting):
        warnings.warn(
            f"{too_long} of {len(encoded)} examples are longer than max_length={max_length} tokens "
            f"(the longest has {max(lengths)}) and are left out",
            stacklevel=2,
        )
    return fitting


def encoder() -> Callable[..., list[Encoded]]:
    """``encode_all`` that encodes the same examples once, for all jobs that have them."""
    known: dict[tuple[int, int], list[Encoded]] = {}

    def encode(tokenizer: Any, examples: Sequence[Any], max_length: int) -> list[Encoded]:
        key = id(examples), max_length  # the jobs keep them alive
        if key not in known:
            known[key] = encode_all(tokenizer, examples, max_length)
        return known[key]

    return encode


def pad(rows: Sequence[Encoded]) -> Batch:
    """One example a row, filled up on the right with token 0 and no label."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORE] * (longest - len(row.labels)) for row in rows])
    return Batch(ids, labels, None, ids.numel() - sum(len(row.ids) for row in rows))


def pack(rows: Sequence[Encoded], room: int) -> Batch:
    """Several examples a row of ``room`` tokens: longest first, each into the first that has room.

    A longer example has a row to itself. The first token of each has no label, because the token
    before it is another example's.
    """
    bins: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        with_room = (b for b in bins if sum(len(e.ids) for e in b) + len(row.ids) <= room)
        target = next(with_room, None)
        if target is None:
            bins.append([row])
        else:
            target.append(row)
    batch = pad([join(examples) for examples in bins])
    segments = torch.zeros_like(batch.ids)  # 0: padding
    for index, examples in enumerate(bins):
        start = 0
        for number, example in enumerate(examples, 1):
            segments[index, start : start + len(example.ids)] = number
            start += len(example.ids)
    return Batch(batch.ids, batch.labels, segments, batch.padding)


def join(examples: Sequence[Encoded]) -> Encoded:
    """Examples one behind the other, as one row."""
    ids = [token for example in examples for token in example.ids]
    labels = [label for example in examples for label in [IGNORE, *example.labels[1:]]]
    return Encoded(ids, labels)
