"""Hours and money: from a speed that was measured and a price that somebody typed. None built in.

    time     W = tokens / (tokens a second of a card · cards · efficiency)
    money    W · cards · price of a card's hour

**Spot instances** cost less and are taken away, every M seconds on average, at any moment. A run
saves a checkpoint after every τ seconds of work, which takes C; an interruption throws away what
was done since the last one, and the new start takes R:

    T = (M + R) (e^((τ+C)/M) - 1) · W/τ

A piece of τ + C seconds must pass without an interruption: with exponential gaps that takes
(e^((τ+C)/M) - 1) M on average, and each of the interruptions on the way costs R besides
(Daly, *A higher order estimate of the optimum checkpoint interval for restart dumps*, FGCS 22,
2006). The best τ solves (1 - τ/M) e^(τ/M) = e^(-C/M); for C much smaller than M it is √(2CM)
(Young, CACM 17, 1974). At that, the first start and the last checkpoint are not looked at.

Spot pays where its discount is above 1 - W/T. An adapter's checkpoint is some 12 bytes a *trained*
number, so C is nearly nothing, and T/W comes down to 1 + R/M: what is left is loading the base.

``tests/ledger/test_money.py`` draws interruptions one by one and compares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import check_positive
from .estimate import Plan, plan
from .shapes import Source

CHECKPOINT_BYTES = 12  # a trained number: itself and AdamW's two moments, float32


def hours(tokens: float, speed: float, cards: int = 1, efficiency: float = 1.0) -> float:
    """Hours that ``tokens`` take at ``speed`` tokens a second on each of ``cards`` cards.

    ``efficiency``: the share of the speed that is left of each card when they work together, 0 to
    1; measure it too.

    >>> hours(36e6, speed=1000, cards=2)
    5.0
    """
    given = {"tokens": tokens, "speed": speed, "cards": cards, "efficiency": efficiency}
    for name, value in given.items():
        check_positive(name, value)
    if efficiency > 1:
        raise ValueError(f"efficiency must be at most 1, got {efficiency}")
    return tokens / (speed * cards * efficiency) / 3600


@dataclass(frozen=True)
class Spot:
    """A run on spot instances; every time in seconds. Raises ``ValueError`` on impossible numbers.

    ``work``: what it takes uninterrupted, ``between``: from one interruption to the next on
    average, ``checkpoint``: to write one, ``restart``: from an interruption until work goes on,
    ``every``: work between two checkpoints (None: the best).

    >>> run = Spot(work=36_000, between=1800, checkpoint=30, restart=120)
    >>> round(run.interval), round(run.stretch, 3), round(run.least_discount, 3)
    (309, 1.288, 0.223)
    """

    work: float
    between: float
    checkpoint: float
    restart: float
    every: float | None = None

    def __post_init__(self) -> None:
        check_positive("work", self.work)
        check_positive("between", self.between)
        for name, value in {"checkpoint": self.checkpoint, "restart": self.restart}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of seconds from 0 on, got {value}")
        if self.every is not None:
            check_positive("every", self.every)
        if (piece := (self.interval + self.checkpoint) / self.between) > 50:
            raise ValueError(
                f"a checkpoint every {piece:.0f} interruptions is never reached: expected less "
                f"work between two (every={self.every}), or a shorter checkpoint"
            )

    @property
    def interval(self) -> float:
        """Seconds of work between two checkpoints."""
        best = best_interval(self.between, self.checkpoint)
        return best if self.every is None else self.every

    @property
    def stretch(self) -> float:
        """T / W: how much longer it takes than without interruptions."""
        M, C, R = self.between, self.checkpoint, self.restart
        if self.interval == 0:  # the limit of free checkpoints
            return (M + R) / M
        return (M + R) * math.expm1((self.interval + C) / M) / self.interval

    @property
    def time(self) -> float:
        """Seconds with all interruptions, on average."""
        return self.work * self.stretch

    @property
    def least_discount(self) -> float:
        """The discount, 0 to 1, above which spot is cheaper."""
        return 1 - 1 / self.stretch

    def saved(self, discount: float) -> float:
        """The share of the money that a discount saves; negative where it loses.

        >>> round(Spot(36_000, 1800, 30, 120).saved(0.7), 3)
        0.614
        """
        if not 0 <= discount < 1:
            raise ValueError(f"discount must be a share from 0 to below 1, got {discount}")
        return 1 - (1 - discount) * self.stretch


def best_interval(between: float, checkpoint: float) -> float:
    """The seconds of work between two checkpoints that make a run shortest, by bisection.

    >>> round(best_interval(1800, 30), 1), round(math.sqrt(2 * 30 * 1800), 1)
    (308.9, 328.6)
    """
    check_positive("between", between)
    goal, low, high = math.exp(-checkpoint / between), 0.0, 1.0
    if checkpoint == 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - middle) * math.exp(middle) > goal else (low, middle)
    return between * (low + high) / 2


@dataclass(frozen=True)
class Storage:
    """Bytes on disk of N fine-tunes: as adapters on one base, and as whole copies.

    >>> a_thousand = plan_storage("llama-2-7b", 1000)
    >>> a_thousand.adapters // 10**9, a_thousand.copies // 10**9
    (30, 13476)
    """

    plan: Plan
    base: int
    count: int

    @property
    def adapters(self) -> int:
        """One base and N adapter files."""
        return self.base + self.count * self.plan.adapter_file_bytes

    @property
    def copies(self) -> int:
        """N whole models."""
        return self.count * self.base


def plan_storage(source: Source, count: int, planned: Plan | None = None) -> Storage:
    """Predict the bytes of ``count`` adapters, and of as many copies in the base's dtype.

    >>> plan_storage("llama-2-7b", 1000).base
    13476831232
    """
    check_positive("count", count)
    planned = planned or plan(source)
    whole = plan(source, method="full", settings=planned.settings)
    return Storage(planned, whole.bytes["weights"], count)
