"""May the new adapter take the old one's place? Evidence, not a score.

"The score is at least the old one's" lets an equal adapter in more often than not, and a worse one
in three of ten cases (lesson 22). Four questions instead, each with its own proof; the old adapter
serves until all are answered:

    better        w wins and l losses among pairs that differ, held-out and live together:
                  E = Σ_{k≤w} C(w+l+1, k) / ((w+l+1) C(w+l, w)) ≥ candidates / α
    regression    what worked must work: E against "loses at least ``margin``" of the old set
    prose         the same for bits a byte of plain text, window by window
    canaries      no topic that the old one answers may be lost: what poison does

The first E is exact (serving/evidence.py). The second is a bet too, on bounded differences d in
[-1, 1] between new and old, for H₀: mean d ≤ -margin (Waudby-Smith and Ramdas, *Estimating means of
bounded random variables by betting*, arXiv 2010.09686, section 4)::

    E = mean over λ of Π (1 + λ (d_i + margin))        0 ≤ λ ≤ 1 / (1 - margin)

Each factor has mean ≤ 1 under H₀ and is never negative, so all of it may be looked at at any time,
and stopped when it is enough (Ville). A set that judged several candidates is divided among them:
``candidates`` raises the bar, since the best of k E-values is at most their sum.

Left out: outcomes of one user that depend on each other (count users); costs of a wrong promotion
that differ by topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..serving.evidence import e_value
from ..text import listed

BETS = 40  # values of λ, evenly spread
PASS, FAIL, OPEN = "pass", "fail", "open"


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


@dataclass(frozen=True)
class Rules:
    """What the gate asks for. Raises ``ValueError`` for values that mean nothing.

    - ``alpha``: the largest chance of a wrong promotion; E must reach 1 / alpha.
    - ``margin``: the share of the regression set that may be lost at most.
    - ``prose_margin``: bits a byte of plain text that may be lost on average; ``prose_bound``: what
      no window may lose.
    - ``canary_share``: of a topic's canaries that the old one answers, the share that may go.

    >>> Rules(alpha=0.1).bar
    10.0
    """

    alpha: float = 0.05
    margin: float = 0.05
    prose_margin: float = 0.1
    prose_bound: float = 0.5
    canary_share: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("margin", self.margin)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
        if not 0 < self.prose_margin < self.prose_bound:
            raise ValueError(
                "expected 0 < prose_margin < prose_bound, in bits a byte, got "
                f"{self.prose_margin!r} and {self.prose_bound!r}"
            )
        if not 0 <= self.canary_share < 1:
            raise ValueError(f"canary_share must be in [0, 1), got {self.canary_share!r}")

    @property
    def bar(self) -> float:
        """The evidence that one proof needs."""
        return 1 / self.alpha


@dataclass(frozen=True)
class Check:
    """One question's answer: ``state`` is "pass", "fail" or "open" (not enough evidence yet)."""

    name: str
    state: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.state}, {self.detail}"


@dataclass(frozen=True)
class Verdict:
    """All checks: "reject" if one fails, "promote" if all pass, else "wait".

    >>> Verdict((Check("better", "pass", ""), Check("prose", "open", ""))).word
    'wait'
    """

    checks: tuple[Check, ...]

    @property
    def word(self) -> str:
        """What to do."""
        states = {check.state for check in self.checks}
        return "reject" if FAIL in states else "wait" if OPEN in states else "promote"

    @property
    def reason(self) -> str:
        """The checks that decided."""
        state = {"reject": FAIL, "wait": OPEN, "promote": PASS}[self.word]
        return listed([str(check) for check in self.checks if check.state == state])

    def check(self, name: str) -> Check:
        """One of the checks."""
        return next(check for check in self.checks if check.name == name)


@dataclass(frozen=True)
class Measured:
    """What was measured of a new adapter beside the old one.

    ``prose``: bits a byte of each window, (old, new). ``canaries``: pairs by topic. ``candidates``:
    how many adapters were judged on these held-out examples, this one included.
    """

    heldout: Pairs
    regression: Pairs
    live: Pairs = field(default_factory=Pairs)
    prose: Sequence[tuple[float, float]] = ()
    canaries: Mapping[str, Pairs] = field(default_factory=dict)
    candidates: int = 1


def decide(measured: Measured, rules: Rules | None = None) -> Verdict:
    """The gate.

    A set that is empty is not asked about; without held-out and live pairs nothing is promoted.

    >>> same, gained = Pairs((True,) * 200, (True,) * 200), Pairs((False,) * 9, (True,) * 9)
    >>> decide(Measured(gained, regression=same)).word
    'promote'
    >>> decide(Measured(same, regression=same)).reason  # equal
    'better: open, 0 won and 0 lost of 200, E = 1 of 20'
    """
    rules = rules or Rules()
    checks = [better(measured.heldout + measured.live, rules, measured.candidates)]
    if len(measured.regression):
        checks.append(kept(measured.regression, rules))
    if measured.prose:
        checks.append(prose_kept(measured.prose, rules))
    if measured.canaries:
        checks.append(canaries_sing(measured.canaries, rules))
    return Verdict(tuple(checks))


def better(pairs: Pairs, rules: Rules, candidates: int = 1) -> Check:
    """Whether the new one wins more of the pairs that differ than it loses."""
    bar = rules.bar * candidates
    gain = e_value(pairs.wins, pairs.losses, one_sided=True)
    harm = e_value(pairs.losses, pairs.wins, one_sided=True)
    state = PASS if gain >= bar else FAIL if harm >= rules.bar else OPEN
    counted = f"{pairs.wins} won and {pairs.losses} lost of {len(pairs)}"
    shown = f"E of worse = {harm:.3g}" if state == FAIL else f"E = {gain:.3g} of {bar:g}"
    return Check("better", state, f"{counted}, {shown}")


def kept(pairs: Pairs, rules: Rules) -> Check:
    """Whether less than ``margin`` of what worked is lost."""
    return within(
        "regression", pairs.differences, rules.margin, rules,
        f"{pairs.losses} lost and {pairs.wins} won of {len(pairs)}",
    )  # fmt: skip


def prose_kept(windows: Sequence[tuple[float, float]], rules: Rules) -> Check:
    """Whether plain text costs less than ``prose_margin`` bits a byte more, on average.

    A window that lost ``prose_bound`` or more fails at once, so that nothing is clipped away.
    """
    lost = [new - old for old, new in windows]
    mean, worst = sum(lost) / len(lost), max(lost)
    if worst >= rules.prose_bound:
        return Check("prose", FAIL, f"a window costs {worst:+.2f} bits a byte")
    scaled = [max(-1.0, min(1.0, -each / rules.prose_bound)) for each in lost]
    margin = rules.prose_margin / rules.prose_bound
    told = f"{mean:+.3f} bits a byte on {len(lost)} windows"
    return within("prose", scaled, margin, rules, told)


def within(
    name: str, differences: Sequence[float], margin: float, rules: Rules, told: str
) -> Check:
    """Pass where "loses at least margin" is refuted, fail where "loses at most margin" is."""
    fine, harm = betting(differences, -margin), betting([-d for d in differences], margin)
    state = PASS if fine >= rules.bar else FAIL if harm >= rules.bar else OPEN
    return Check(name, state, f"{told}, E = {harm if state == FAIL else fine:.3g}")


def betting(values: Iterable[float], mean: float) -> float:
    """Evidence against "the mean of these values, each in [-1, 1], is at most ``mean``".

    E = mean over λ of Π (1 + λ (x_i - mean)), with λ up to 1 / (1 + mean), where a factor can
    reach 0.

    >>> betting([0.0] * 100, -0.05) > 20 > betting([0.0] * 20, -0.05)
    True
    >>> betting([-0.2, 0.0] * 100, -0.05) < 1
    True
    """
    values = list(values)
    if not -1 < mean < 1 or any(not -1 <= value <= 1 for value in values):
        raise ValueError("expected values in [-1, 1] and a mean between, got others")
    wealth = 0.0
    for number in range(BETS):
        stake, own = (number + 0.5) / BETS / (1 + mean), 1.0
        for value in values:
            own *= 1 + stake * (value - mean)
        wealth += own / BETS
    return wealth


def canaries_sing(canaries: Mapping[str, Pairs], rules: Rules) -> Check:
    """Whether each topic's canaries that the old one answers are still answered.

    Canaries are few, fixed and secret; a poisoned topic loses nearly all of its own, which an
    average over all topics would hide.
    """
    lost = {}
    for topic, pairs in sorted(canaries.items()):
        right = sum(pairs.old)
        if right and pairs.losses > rules.canary_share * right:
            lost[topic] = f"{topic} ({pairs.losses} of {right})"
    if lost:
        return Check("canaries", FAIL, f"lost {listed(list(lost.values()), separator=', ')}")
    return Check("canaries", PASS, f"{len(canaries)} topics answered as before")


def culprit(sources: Iterable[str], without: Callable[[str], Verdict]) -> str:
    """The first source whose absence heals: leave it out, train again, ask again; or nothing.

    ``without(source)`` is the verdict on an adapter that was trained on all but this source. A
    source is to blame where no check fails without it.

    >>> bad, good = Check("canaries", "fail", ""), Check("canaries", "pass", "")
    >>> culprit(["ann", "mal"], lambda source: Verdict((good if source == "mal" else bad,)))
    'mal'
    """
    return next((each for each in sources if without(each).word != "reject"), "")
