"""Who taught it? A candidate did harm: leave each suspect out, train again, and compare.

"Without ann nothing fails" is no proof against ann: near a bar a check may fail or pass by the luck
of one training. So a source is to blame only where, on the same questions, the adapter without it
beats the one with it:

    E ≥ suspects / α    that the pairs (with it, without it) are won more than lost
    and no harm is left in the adapter without it
    and both hold again for two other trainings, with and without it, of another seed

The last line is about the luck of a training: E is over questions, and shows that two adapters
differ, not why. A lucky one beats an unlucky one on question after question. That having fewer
examples made the difference is not excluded.

The questions are the held-out ones of others, the regression set and the canaries. A poison that
touches a topic loses the whole topic's, so a dozen pairs are enough; where they are not, nobody is
expelled, and the candidate is rejected all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .gate import Rules, Verdict
from .pairs import Pairs, gain_evidence


@dataclass(frozen=True)
class Trial:
    """An adapter without one source: the gate's verdict on it, and pairs of (with, without)."""

    verdict: Verdict
    pairs: Pairs

    @property
    def evidence(self) -> float:
        """That it is better without."""
        return gain_evidence(self.pairs.wins, self.pairs.losses)

    def __str__(self) -> str:
        harm = "harm is left" if self.verdict.harmful else "no harm is left"
        won = f"{self.pairs.wins} won and {self.pairs.losses} lost of {len(self.pairs)}"
        return f"{harm}; against the one with it {won}, E = {self.evidence:.3g}"


def culprit(trials: Mapping[str, Trial], rules: Rules | None = None) -> str:
    """The source whose absence heals, by the most evidence; empty where none is proved to.

    >>> from .gate import Check
    >>> well, ill = Verdict((Check("a", "pass", ""),)), Verdict((Check("a", "fail", "", True),))
    >>> same, healed = Pairs((True,) * 20, (True,) * 20), Pairs((False,) * 20, (True,) * 20)
    >>> culprit({"ann": Trial(well, same), "mal": Trial(well, healed), "eve": Trial(ill, healed)})
    'mal'
    >>> culprit({"ann": Trial(well, same)})  # no harm is left, by luck: nobody is expelled for that
    ''
    """
    guilty = {
        source: trial.evidence
        for source, trial in trials.items()
        if proved(trial, len(trials), rules)
    }
    return max(guilty, key=lambda source: guilty[source], default="")


def proved(trial: Trial, suspects: int, rules: Rules | None = None) -> bool:
    """Whether a trial is enough, where so many sources are suspected."""
    bar = (rules or Rules()).bar * suspects
    return trial.evidence >= bar and not trial.verdict.harmful
