"""From examples to tensors: tokens and labels, padded or packed, in an order that a seed and a step number fix.

Labels are -100 wherever nothing is to be learnt: in the prompt, in the padding. The loss sees the answer only, and the
token that ends it.

Padding puts one example in a row and fills up on the right; a causal model never looks there, so no mask is needed.
Packing puts several in a row and numbers them; the attention mask then lets a token see its own example only, and since
rotary positions are relative, each example is computed as if it stood alone (tested: tests/training/test_batches.py).

The batch of step n is a function of (seed, n) alone, so a resumed run sees just what an uninterrupted one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .data import Example

IGNORE = -100  # cross_entropy's mark for "no label here"


@dataclass(frozen=True)
class Encoded:
    """One example as token ids and labels of the same length."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Batch:
    """``ids`` and ``labels`` (rows, time); ``segments`` (rows, time) numbers packed examples from 1, or is None."""

    ids: Tensor
    labels: Tensor
    segments: Tensor | None

    @property
    def answer_tokens(self) -> int:
        """How many labels count, the first column aside: nothing predicts it."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            self.ids.to(device),
            self.labels.to(device),
            None if self.segments is None else self.segments.to(device),
        )


def encode(tokenizer: Any, example: Example) -> Encoded:
    """Prompt and answer in the tokenizer's chat form; only the answer and its end are labels."""
    prompt = tokenizer.encode(tokenizer.prompt(example.instruction, example.input))
    answer = tokenizer.answer(example.output)
    return Encoded(prompt + answer, [IGNORE] * len(prompt) + answer)


def encode_all(tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """All examples that fit ``max_length`` tokens; warns of those that do not. Raises ``ValueError`` when none is left."""
    encoded = [encode(tokenizer, example) for example in examples]
    fitting = [e for e in encoded if len(e.ids) <= max_length]
    if not fitting:
        shortest = min((len(e.ids) for e in encoded), default=0)
        raise ValueError(
            f"no example fits max_length={max_length} tokens: {len(encoded)} given, the shortest has {shortest}; "
            "raise max_length or shorten the examples"
        )
    if len(fitting) < len(encoded):
        longest = max(len(e.ids) for e in encoded)
        warnings.warn(
            f"{len(encoded) - len(fitting)} of {len(encoded)} examples are longer than max_length={max_length} tokens "
            f"(the longest has {longest}) and are left out",
            stacklevel=2,
        )
    return fitting


def pad(rows: Sequence[Encoded]) -> Batch:
    """One example a row, filled up on the right with token 0 and no label."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORE] * (longest - len(row.labels)) for row in rows])
    return Batch(ids, labels, None)


def pack(rows: Sequence[Encoded], max_length: int) -> Batch:
    """Several examples a row, longest first into the first row that has room; the first token of each has no label."""
    bins: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        room = (b for b in bins if sum(len(e.ids) for e in b) + len(row.ids) <= max_length)
        target = next(room, None)
        if target is None:
            bins.append([row])
        else:
            target.append(row)
    joined = [
        Encoded([t for e in b for t in e.ids], [t for e in b for t in [IGNORE, *e.labels[1:]]])
        for b in bins
    ]
    batch = pad(joined)
    segments = torch.zeros_like(batch.ids)  # 0: padding
    for index, examples in enumerate(bins):
        start = 0
        for number, example in enumerate(examples, 1):
            segments[index, start : start + len(example.ids)] = number
            start += len(example.ids)
    return Batch(batch.ids, batch.labels, segments)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which of ``count`` examples make the batch of a step: every example once an epoch, each epoch in its own order.

    >>> sorted(batch_indices(4, 2, 0, seed=1) + batch_indices(4, 2, 1, seed=1))
    [0, 1, 2, 3]
    """
    chosen: list[int] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        if not chosen or offset == 0:
            order = torch.randperm(
                count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            ).tolist()
        chosen.append(order[offset])
    return chosen
