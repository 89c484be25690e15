"""What the loop keeps good, and how; and what the gate compares of two models.

The regression set and the canaries are the caller's, never users': who could write them could open
the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..lora.config import LoraConfig
from ..training.config import TrainConfig
from ..training.evaluation import answers, bits_per_byte
from ..training.examples import Learnt, asked_and_expected
from ..training.replay import Replay, SelfReplay
from .gate import Measured, Pairs, Rules


@dataclass(frozen=True)
class Recipe:
    """What the loop keeps good, and how.

    - ``name``: the adapter's in the hub; ``old``: the examples it was first made of.
    - ``regression``: examples that must stay right; ``canaries``: a few secret ones by topic;
      ``prose``: windows of plain text.
    - ``config``, ``train``, ``replay``: as for ``minilora.train``.
    - ``after``: so many new examples make a round due; ``every``: so many seconds.
    - ``judged``: held-out examples of users that a round takes at most; ``suspects``: how many
      sources are left out in turn when a candidate is rejected, those with most complaints first.
    """

    name: str
    old: Sequence[Learnt]
    regression: Sequence[Learnt]
    canaries: Mapping[str, Sequence[Learnt]] = field(default_factory=dict)
    prose: Sequence[str] = ()
    config: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    replay: Replay | None = field(default_factory=SelfReplay)
    rules: Rules = field(default_factory=Rules)
    after: int = 50
    every: float = 7 * 86_400.0
    judged: int = 200
    suspects: int = 3


@dataclass(frozen=True)
class Marks:
    """One model's answers to what does not change: regression, canaries, prose."""

    regression: tuple[bool, ...]
    canaries: Mapping[str, tuple[bool, ...]]
    prose: Sequence[float]


def compared(old: Marks, new: Marks, pairs: Pairs) -> Measured:
    """Two models' marks beside the pairs that are to show which is better."""
    return Measured(
        pairs,
        Pairs(old.regression, new.regression),
        prose=list(zip(old.prose, new.prose, strict=True)),
        canaries={topic: Pairs(old.canaries[topic], new.canaries[topic]) for topic in old.canaries},
    )


def marks(model: Any, recipe: Recipe) -> Marks:
    """A model's answers to a recipe's fixed questions, and its bits a byte of each window."""
    return Marks(
        right(model, recipe.regression),
        {topic: right(model, asked) for topic, asked in recipe.canaries.items()},
        [bits_per_byte(model, text) for text in recipe.prose],
    )


def right(model: Any, examples: Sequence[Learnt]) -> tuple[bool, ...]:
    """Which examples a model answers to the letter, spaces at the ends aside."""
    if not examples:
        return ()
    given = answers(model, examples)
    expected = [asked_and_expected(example)[1] for example in examples]
    return tuple(a.strip() == b.strip() for a, b in zip(given, expected, strict=True))
