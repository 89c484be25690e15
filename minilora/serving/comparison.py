"""Two arms of an experiment side by side, and how the evidence came to be.

    outcomes of the log, a user's first only
    → the k-th of the control and the k-th of the arm are a pair
    → e_value of the pairs that differ, msprt and confidence_sequence of the mean difference
    → whether the users came in the planned shares; if not, nothing else counts

A user's outcomes depend on each other, so the first one stands for all. With several arms beside
the control each is asked for (arms − 1)/α instead of 1/α (Bonferroni), so that α holds for all.

Left out: drift. With unequal shares the k-th outcome of the small arm comes later than that of the
large one, so questions that grow easier or harder look like a difference between the arms: give
both the same share (and ``ramp`` for few users), or pair neighbours in time, as jobs/live.py does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .assignment import Experiment
from .evidence import confidence_sequence, e_value, msprt, sample_ratio_e_value

TAU = 0.1  # the difference of means that msprt looks for
NORMAL = 30  # pairs from which on a mean is taken for normal


@dataclass(frozen=True)
class Point:
    """The evidence after so many pairs; ``low`` and ``high`` hold the difference of the means."""

    pairs: int
    e: float
    msprt: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An arm beside the control.

    - ``users``: who were drawn into (control, arm); ``split``: the E-value against the planned
      shares, of all arms.
    - ``wins``, ``losses``: pairs in which the arm's outcome is higher, lower.
    - ``now``: the evidence of all pairs; ``points``: after some of them, the last one included.
    - ``limit``: the E at which the arms are called different; ``worse``: the one-sided E at which
      the arm was taken out of service, 0 where it was not.
    """

    experiment: str
    control: str
    arm: str
    adapter: str
    users: tuple[int, int]
    split: float
    wins: int
    losses: int
    now: Point
    points: tuple[Point, ...]
    limit: float
    worse: float = 0.0

    @property
    def pairs(self) -> int:
        """How many."""
        return self.now.pairs

    @property
    def verdict(self) -> str:
        """What may be concluded, in a sentence."""
        if self.split >= self.limit:
            return f"users do not come in the planned shares (E = {self.split:.3g}): find out why"
        decided = max((self.now.e, *(point.e for point in self.points))) >= self.limit
        if self.worse and not decided:
            alone = f"{self.arm} is worse than {self.control}: one-sided E = {self.worse:.3g}"
            return f"{alone}; while the experiment runs, its champion answers instead, if it can"
        if not decided:
            return f"undecided: E = {self.now.e:.3g}, {self.limit:g} is needed"
        better, worse = (
            (self.arm, self.control) if self.wins > self.losses else (self.control, self.arm)
        )
        return f"{better} is better than {worse}: E = {self.now.e:.3g}"


def compare(
    experiment: Experiment,
    users: Mapping[str, int],
    outcomes: Sequence[tuple[str, float]],
    points: int = 0,
    worse: Mapping[str, float] = MappingProxyType({}),
) -> list[Comparison]:
    """Each arm beside the control.

    ``users``: how many were drawn into each arm. ``outcomes``: (arm, score) as they came, one a
    user. ``points``: how many steps of the history to compute; 0: only the last. ``worse``: the
    one-sided E of each arm that is out of service.

    >>> both = Experiment("greeting", "naval", {"old": "a", "new": "b"})
    >>> outcomes = [("old", 0.0), ("new", 1.0)] * 9
    >>> found = compare(both, {"old": 9, "new": 9}, outcomes)[0]
    >>> found.wins, found.losses, found.verdict
    (9, 0, 'new is better than old: E = 51.2')
    """
    control, *others = experiment.arms
    counts = [users.get(arm, 0) for arm in experiment.arms]
    split = sample_ratio_e_value(counts, [experiment.shares[arm] for arm in experiment.arms])
    first = [score for name, score in outcomes if name == control]
    found = []
    for arm in others:
        second = [score for name, score in outcomes if name == arm]
        n = min(len(first), len(second))
        differences = np.array(second[:n], dtype=float) - np.array(
            first[:n], dtype=float
        )  # (pairs,)
        steps = np.unique(np.linspace(n, 1, min(n, max(1, points))).round()).astype(int)
        history = tuple(evidence_of(differences[:k], experiment.alpha) for k in steps)
        now = history[-1] if history else evidence_of(differences, experiment.alpha)
        found.append(
            Comparison(
                experiment=experiment.name,
                control=control,
                arm=arm,
                adapter=experiment.arms[arm],
                users=(users.get(control, 0), users.get(arm, 0)),
                split=split,
                wins=int((differences > 0).sum()),
                losses=int((differences < 0).sum()),
                now=now,
                points=history,
                limit=len(others) / experiment.alpha,
                worse=worse.get(arm, 0.0),
            )
        )
    return found


def evidence_of(differences: np.ndarray, alpha: float) -> Point:
    """The evidence of so many pairs; what rests on the normal limit is 1 or (−1, 1) before it."""
    n = len(differences)
    e = e_value(int((differences > 0).sum()), int((differences < 0).sum()))
    if n < NORMAL or not (deviation := float(differences.std())):
        return Point(n, e, 1.0, float(differences.mean()) if n else math.nan, -1.0, 1.0)
    mean = float(differences.mean())
    low, high = confidence_sequence(mean, deviation, n, alpha)
    return Point(n, e, msprt(mean, deviation**2 / n, TAU), mean, max(low, -1.0), min(high, 1.0))
