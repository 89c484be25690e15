"""May the new adapter take the old one's place? Evidence, not a score.

"The score is at least the old one's" lets an equal adapter in more often than not, and a worse one
in three of ten cases (lesson 22). Five questions instead; the old adapter serves until all are
answered well:

    better        held-out and live pairs: E ≥ candidates / α that more are won than lost, also
                  without the users' own questions, which are complaints (exam.py); and E ≥ its root
                  without live pairs, since users can be invented
    regression    what worked must work: E ≥ 1 / α that less than ``margin`` of the old set is lost
    prose         the same for bits a byte of plain text, window by window
    canaries      no topic that the old one answers may be lost: what poison does
    norm          ‖ΔW‖ far from its predecessors' waits for a person (norms.py)

Each E may be looked at after each pair (pairs.py). A check *passes* with evidence, and *fails* in
one of three ways: with evidence of harm; with evidence that the gain is below ``worth``; or because
all that could be asked was asked and it was not enough. Nothing waits forever: ``better`` is open
only while pairs may still come, and below ``most`` of them.

A set that judged several candidates is divided among them: ``candidates`` raises the bar, since the
best of k E-values is at most their sum.

Left out: outcomes of one user that depend on each other (count users); costs of a wrong promotion
that differ by topic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..text import listed
from .norms import outliers
from .pairs import Pairs, betting, gain_evidence

PASS, FAIL, OPEN = "pass", "fail", "open"


@dataclass(frozen=True)
class Rules:
    """What the gate asks for. Raises ``ValueError`` for values that mean nothing.

    - ``alpha``: the largest chance of a wrong promotion; E must reach 1 / alpha.
    - ``worth``: the least gain, as a share of all questions, that is worth a change; ``most``:
      pairs after which a candidate that is not shown to be better is rejected.
    - ``margin``: the share of the regression set that may be lost at most.
    - ``prose_margin``: bits a byte of plain text that may be lost on average; ``prose_bound``: what
      no window may lose.
    - ``canary_share``: of a topic's canaries that the old one answers, the share that may go;
      ``sure``: how many it must answer for the topic to be judged.
    - ``norm_factor``: how many times ‖ΔW‖ may be its predecessors', up or down, without a person.

    >>> Rules(alpha=0.1).bar
    10.0
    """

    alpha: float = 0.05
    worth: float = 0.02
    most: int = 4000
    margin: float = 0.05
    prose_margin: float = 0.1
    prose_bound: float = 0.5
    canary_share: float = 0.5
    sure: int = 3
    norm_factor: float = 3.0

    def __post_init__(self) -> None:
        for name in ("alpha", "margin", "worth"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
        if not 0 < self.prose_margin < self.prose_bound:
            raise ValueError(
                "expected 0 < prose_margin < prose_bound, in bits a byte, got "
                f"{self.prose_margin!r} and {self.prose_bound!r}"
            )
        if not 0 <= self.canary_share < 1:
            raise ValueError(f"canary_share must be in [0, 1), got {self.canary_share!r}")
        if self.most < 1 or self.sure < 1 or not self.norm_factor > 1:
            raise ValueError(
                "expected most and sure from 1 on and norm_factor above 1, got "
                f"{self.most!r}, {self.sure!r} and {self.norm_factor!r}"
            )

    @property
    def bar(self) -> float:
        """The evidence that one proof needs."""
        return 1 / self.alpha


@dataclass(frozen=True)
class Check:
    """One question's answer; ``state``: "pass", "fail" or "open"; ``harm``: harm was shown."""

    name: str
    state: str
    detail: str
    harm: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.state}, {self.detail}"


@dataclass(frozen=True)
class Verdict:
    """All checks: "reject" if one fails, "promote" if all pass, else "wait".

    >>> Verdict((Check("better", "pass", ""), Check("norm", "open", ""))).word
    'wait'
    """

    checks: tuple[Check, ...]

    @property
    def word(self) -> str:
        """What to do."""
        states = {check.state for check in self.checks}
        return "reject" if FAIL in states else "wait" if OPEN in states else "promote"

    @property
    def harmful(self) -> bool:
        """Whether harm was shown, and not only a gain missed."""
        return any(check.harm for check in self.checks)

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

    ``without``: held-out pairs without somebody's own questions, by whose. ``prose``: bits a byte
    of each window, (old, new). ``canaries``: pairs by topic. ``norms``: ‖ΔW‖ by module, and
    ``norms_before`` those of the champions so far. ``candidates``: how many adapters these held-out
    examples judged, this one included.

    >>> Measured(Pairs((True, False), (True, True))).heldout.wins
    1
    """

    heldout: Pairs
    regression: Pairs = field(default_factory=Pairs)
    live: Pairs = field(default_factory=Pairs)
    without: Mapping[str, Pairs] = field(default_factory=dict)
    prose: Sequence[tuple[float, float]] = ()
    canaries: Mapping[str, Pairs] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    norms_before: Sequence[Mapping[str, float]] = ()
    candidates: int = 1


def decide(measured: Measured, rules: Rules | None = None) -> Verdict:
    """The gate.

    A set that is empty is not asked about; without held-out and live pairs nothing is promoted.

    >>> same, gained = Pairs((True,) * 300, (True,) * 300), Pairs((False,) * 9, (True,) * 9)
    >>> decide(Measured(gained, regression=same)).word
    'promote'
    >>> print(decide(Measured(same, regression=same)).check("better"))  # equal: no gain of 2 points
    better: fail, 0 won and 0 lost of 300, E of a gain below 0.02 = 71
    """
    rules = rules or Rules()
    sides = {"": measured.heldout, **measured.without}
    bets = measured.candidates, measured.live
    votes = {name: better(pairs, rules, *bets) for name, pairs in sides.items()}
    checks = [agreed(votes, len(measured.heldout + measured.live) >= rules.most)]
    if len(measured.regression):
        checks.append(kept(measured.regression, rules))
    if measured.prose:
        checks.append(prose_kept(measured.prose, rules))
    if measured.canaries:
        checks.append(canaries_sing(measured.canaries, rules))
    if measured.norms and measured.norms_before:
        checks.append(norm_usual(measured.norms, measured.norms_before, rules))
    return Verdict(tuple(checks))


def better(heldout: Pairs, rules: Rules, candidates: int = 1, live: Pairs | None = None) -> Check:
    """Whether the new one wins more of the pairs that differ than it loses; half of the (log)
    evidence must come without ``live`` pairs, as who invents users wins any number of those.
    """
    pairs = heldout + (live or Pairs())
    wins, losses, bar = pairs.wins, pairs.losses, rules.bar * candidates
    gain, harm = gain_evidence(wins, losses), gain_evidence(losses, wins)
    counted = f"{wins} won and {losses} lost of {len(pairs)}"
    state = PASS if gain >= bar else FAIL if harm >= rules.bar else OPEN
    if state == FAIL:
        return Check("better", FAIL, f"{counted}, E of worse = {harm:.3g}", harm=True)
    small = betting([-each for each in pairs.differences], -rules.worth)
    if state == OPEN and small >= rules.bar:
        return Check("better", FAIL, f"{counted}, E of a gain below {rules.worth:g} = {small:.3g}")
    told = f"{counted}, E = {gain:.3g} of {bar:g}"
    alone = gain_evidence(heldout.wins, heldout.losses)
    if state == PASS and live and alone < math.sqrt(bar):
        state, told = OPEN, f"{told}; without live pairs {alone:.3g} of {math.sqrt(bar):.3g}"
    if state == OPEN and len(pairs) >= rules.most:
        return Check("better", FAIL, f"{told}, and {rules.most:,} pairs are the most")
    return Check("better", state, told)


def agreed(checks: Mapping[str, Check], last: bool = False) -> Check:
    """The check on all questions; it passes only if it does without those that are left out too,
    else it is open, and failed where these are the ``last`` pairs.

    Users have held-out questions of their own, and what they taught wrongly they also ask: an
    adapter that answers as they wish would win by their exam. A check that fails stays failed,
    whoever asked: the old adapter serves on, and blame.py looks for the cause of harm.

    >>> shown, open_ = Check("better", "pass", "9 won"), Check("better", "open", "none")
    >>> print(agreed({"": shown, "mal": open_}))
    better: open, 9 won; but without the questions of mal: none
    """
    whole = checks[""]
    against = [source for source, check in checks.items() if check.state != PASS]
    if whole.state != PASS or not against:
        return whole
    told = f"without the questions of {against[0]}: {checks[against[0]].detail}"
    return Check(whole.name, FAIL if last else OPEN, f"{whole.detail}; but {told}")


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
    mean, worst = sum(lost) / len(lost), max(lost, key=lambda each: (each != each, each))
    if not worst < rules.prose_bound:  # NaN is the worst
        return Check("prose", FAIL, f"a window costs {worst:+.2f} bits a byte", harm=True)
    scaled = [min(1.0, -each / rules.prose_bound) for each in lost]
    margin = rules.prose_margin / rules.prose_bound
    told = f"{mean:+.3f} bits a byte on {len(lost)} windows"
    return within("prose", scaled, margin, rules, told)


def within(
    name: str, differences: Sequence[float], margin: float, rules: Rules, told: str
) -> Check:
    """Pass where "loses at least margin" is refuted; else fail, since the whole set was asked: with
    harm where "loses at most margin" is refuted, or because the set is too small to tell.
    """
    fine, harm = betting(differences, -margin), betting([-d for d in differences], margin)
    if fine >= rules.bar:
        return Check(name, PASS, f"{told}, E = {fine:.3g}")
    if harm >= rules.bar:
        return Check(name, FAIL, f"{told}, E of harm = {harm:.3g}", harm=True)
    return Check(name, FAIL, f"{told}, E = {fine:.3g} of {rules.bar:g}: a larger set could tell")


def canaries_sing(canaries: Mapping[str, Pairs], rules: Rules) -> Check:
    """Whether each topic keeps enough of the canaries that the old one answers.

    Canaries are few, fixed and secret; a poisoned topic loses nearly all of its own, which an
    average over all topics would hide. A topic of which the old one answers fewer than ``sure`` is
    not judged, and that is said.
    """
    lost, unsure = {}, {}
    for topic, pairs in sorted(canaries.items()):
        right = sum(pairs.old)
        if right < rules.sure:
            unsure[topic] = f"{topic} ({right} of {len(pairs)})"
        elif pairs.losses > rules.canary_share * right:
            lost[topic] = f"{topic} ({pairs.losses} of {right})"
    if lost:
        told = listed(list(lost.values()), separator=", ")
        return Check("canaries", FAIL, f"lost {told}", harm=True)
    judged = [pairs for topic, pairs in canaries.items() if topic not in unsure]
    losses, right = sum(each.losses for each in judged), sum(sum(each.old) for each in judged)
    told = f"{len(judged)} topics kept, {losses} of {right} answers lost"
    if names := listed(list(unsure.values()), separator=", "):
        told += f"; too few that the old one answers to judge {names}"
    return Check("canaries", PASS, told)


def norm_usual(
    norms: Mapping[str, float], before: Sequence[Mapping[str, float]], rules: Rules
) -> Check:
    """Whether ‖ΔW‖ is about what the champions' was; else it is a person's to decide."""
    if strange := outliers(norms, before, rules.norm_factor):
        told = listed(strange, 4, ", ")
        return Check("norm", OPEN, f"‖ΔW‖ of {told}: a person promotes it, or nobody")
    times = f"within {rules.norm_factor:g} times of {len(before)} before"
    return Check("norm", PASS, f"‖ΔW‖ {times}")
