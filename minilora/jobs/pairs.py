"""Pairs of answers by two adapters to the same questions, and what they prove.

Only a question that exactly one of the two answers rightly says anything: it differs. Of w won and
l lost among those, for H₀ "a differing question is won with probability ½ at most" (Ville 1939)::

    E = 2 · 2ⁿ⁺² ∫½¹ pʷ (1−p)ˡ⁺¹ dp                        n = w + l

That is a bet on every p above ½, with the weight 1 − p: more of the money is on small gains, which
are what a gate has to find. No bet does much better: one who knew p would take three quarters of
the questions (``benchmarks/gate.py``).

How many pairs does that take? A gambler who knew p would gain, with each pair that differs, the
expected log growth::

    KL(p ‖ ½) = p ln 2p + (1−p) ln 2(1−p)                  p = ½ + gain / (2 · differing)

so E = 1/α takes about ln(1/α) / (differing · KL) pairs: near 2 · differing · ln(1/α) / gain². Fewer
differing answers are as good as more questions. Hence both adapters get the *same* questions.

For "is the mean at most m?" over values in [-1, 1], such as new minus old (Waudby-Smith and Ramdas,
*Estimating means of bounded random variables by betting*, arXiv 2010.09686, section 4)::

    E = mean over λ of Π (1 + λ (x_i − m))                 0 ≤ λ ≤ 1 / (1 + m)

Each factor has mean ≤ 1 under H₀ and is never negative, so one may look at any time, and stop
when it is enough.

Left out: graded answers (a likelihood in place of right or wrong), which would need fewer questions
and prove something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..serving.evidence import e_value

BETS = 40  # values of λ, evenly spread
EXTRA = 1  # losses that the bet on a gain begins with, which put more of its money on small gains


@dataclass(frozen=True)
class Pairs:
    """Whether the old and the new adapter answered the same questions rightly, in order.

    >>> pairs = Pairs((True, False, False), (True, True, True))
    >>> pairs.wins, pairs.losses, len(pairs)
    (2, 0, 3)
    """

    old: tuple[bool, ...] = ()
    new: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if len(self.old) != len(self.new):
            raise ValueError(
                f"expected an answer of both to each question, got {len(self.old)} of the old and "
                f"{len(self.new)} of the new adapter"
            )

    def __len__(self) -> int:
        return len(self.old)

    def __add__(self, more: Pairs) -> Pairs:
        return Pairs(self.old + more.old, self.new + more.new)

    @property
    def wins(self) -> int:
        """Questions that only the new one got right."""
        return sum(new and not old for old, new in zip(self.old, self.new, strict=True))

    @property
    def losses(self) -> int:
        """Questions that only the old one got right."""
        return sum(old and not new for old, new in zip(self.old, self.new, strict=True))

    @property
    def differences(self) -> list[float]:
        """New minus old, -1, 0 or 1 a question."""
        return [float(new) - float(old) for old, new in zip(self.old, self.new, strict=True)]


def gain_evidence(wins: int, losses: int) -> float:
    """Evidence that more of the pairs that differ are won than lost: the E of above.

    >>> gain_evidence(0, 0), gain_evidence(9, 0) > 20 > gain_evidence(9, 1)
    (1.0, True)
    """
    return (EXTRA + 1) * e_value(wins, losses + EXTRA, one_sided=True)


def pairs_needed(gain: float, differing: float, alpha: float = 0.05) -> float:
    """How many pairs a gain takes, in expected log growth, by one who knows it; see above.

    ``gain``: won minus lost, as a share of all pairs; ``differing``: won plus lost. Raises
    ``ValueError`` unless 0 < gain ≤ differing ≤ 1.

    >>> round(pairs_needed(0.03, 0.156)), round(pairs_needed(0.03, 0.06))  # 90% and 93% right
    (1032, 382)
    """
    if not 0 < gain <= differing <= 1:
        raise ValueError(f"expected 0 < gain <= differing <= 1, got {gain} and {differing}")
    p = 0.5 + gain / (2 * differing)
    growth = sum(q * math.log(2 * q) for q in (p, 1 - p) if q > 0)
    return -math.log(alpha) / (differing * growth)


def betting(values: Iterable[float], mean: float) -> float:
    """Evidence against "the mean of these values, each in [-1, 1], is at most ``mean``".

    E = mean over λ of Π (1 + λ (x_i - mean)), with λ up to 1 / (1 + mean), where a factor can
    reach 0. Infinite above 1e308.

    >>> betting([0.0] * 100, -0.05) > 20 > betting([0.0] * 20, -0.05)
    True
    >>> betting([-0.2, 0.0] * 100, -0.05) < 1
    True
    """
    values = list(values)
    gained = np.asarray(values, dtype=float) - mean  # (pairs,)
    if not -1 < mean < 1 or not (abs(gained + mean) <= 1 + 1e-9).all():  # nor NaN
        far = [each for each in (mean, *values) if not abs(each) <= 1] or [mean]
        raise ValueError(f"expected values in [-1, 1] and a mean between, got {far[0]}")
    stakes = (np.arange(BETS) + 0.5) / BETS / (1 + mean)  # (bets,)
    logs = np.log1p(stakes[:, None] * gained).sum(1) - math.log(BETS)
    total = float(np.logaddexp.reduce(logs))
    return math.exp(total) if total < 709 else math.inf
