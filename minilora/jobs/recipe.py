"""What the loop keeps good, and how; and what the gate compares of two models.

The regression set, the canaries and the reserve are the owner's, never users': whoever could write
them could open the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..training.evaluation import answers, bits_per_byte
from ..training.examples import Example, Learnt, asked_and_expected
from .gate import Measured, Rules
from .pairs import Pairs
from .spec import Spec


@dataclass(frozen=True)
class Recipe:
    """What the loop keeps good, and how. Raises ``ValueError`` for tables that no job would take.

    - ``name``: the adapter's in the hub; ``old``: the examples it was first made of.
    - ``regression``: examples that must stay right; ``canaries``: a few secret ones by topic;
      ``prose``: windows of plain text; ``reserve``: held-out questions beside the users'.
    - ``base``, ``method``, ``train``, ``replay``: the tables of a job's spec (spec.py).
    - ``after``: so many new examples make a round due; ``every``: so many seconds.
    - ``block``: held-out questions between two looks; ``suspects``: how many sources are left out
      in turn when a candidate does harm, those with most complaints first.

    >>> old = [Example("Status?", "Hull 90%.")]
    >>> recipe = Recipe("naval", old, regression=old, train={"steps": 100})
    >>> recipe.spec(Path("examples.jsonl")).name, recipe.seeded(1).train["seed"]
    ('naval', 1)
    """

    name: str
    old: Sequence[Learnt]
    regression: Sequence[Learnt]
    canaries: Mapping[str, Sequence[Learnt]] = field(default_factory=dict)
    prose: Sequence[str] = ()
    reserve: Sequence[Example] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    replay: Mapping[str, Any] | None = field(default_factory=lambda: {"share": 0.25})
    rules: Rules = field(default_factory=Rules)
    after: int = 50
    every: float = 7 * 86_400.0
    block: int = 100
    suspects: int = 3

    def __post_init__(self) -> None:
        self.spec(Path("examples.jsonl"))
        if self.after < 1 or self.block < 1 or self.suspects < 0 or not self.every > 0:
            raise ValueError(
                "expected after and block from 1 on, suspects from 0 on and every above 0, got "
                f"{self.after}, {self.block}, {self.suspects} and {self.every}"
            )

    def seeded(self, more: int) -> Recipe:
        """The same with another seed of the training, so many further on."""
        if not more:
            return self
        return replace(self, train={**self.train, "seed": int(self.train.get("seed", 0)) + more})

    def spec(self, file: Path) -> Spec:
        """The job that learns the examples of a file: all of them, since the gate judges."""
        tables = {"base": self.base, "method": self.method, "train": self.train}
        values: dict[str, Any] = {name: dict(table) for name, table in tables.items()}
        values |= {"name": self.name, "data": {"train": str(file), "share": 0.0}}
        values |= {"evaluation": {"examples": 0, "prose": False}}
        values |= {"replay": dict(self.replay)} if self.replay else {}
        return Spec.parse(values, f"the recipe of {self.name!r}")


@dataclass(frozen=True)
class Marks:
    """One model's answers to what does not change: regression, canaries, prose."""

    regression: tuple[bool, ...]
    canaries: Mapping[str, tuple[bool, ...]]
    prose: Sequence[float]

    @property
    def answers(self) -> tuple[bool, ...]:
        """To the regression set, then to the canaries."""
        return self.regression + tuple(each for topic in self.canaries.values() for each in topic)


def compared(old: Marks, new: Marks, pairs: Pairs, **more: Any) -> Measured:
    """Two models' marks beside the pairs that are to show which is better."""
    return Measured(
        pairs,
        Pairs(old.regression, new.regression),
        prose=list(zip(old.prose, new.prose, strict=True)),
        canaries={topic: Pairs(old.canaries[topic], new.canaries[topic]) for topic in old.canaries},
        **more,
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
