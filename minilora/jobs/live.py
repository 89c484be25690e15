"""Live pairs: a share of the server's users gets the other adapter, until evidence decides.

    a challenger waits     arms old = the champion, new = the challenger (``share`` of the users)
    after a promotion      arms old = the one before (``share``), new = the champion

An experiment of the server (serving/experiments.py), in the folder that both share: it draws users
of the tenant whose loop this is, and ``/v1/feedback`` gives the scores. A score of ½ or more is
right, and only a user's first outcome counts, for the arm that was drawn.

**What is a pair?** The outcomes come at their times, and questions may grow easier or harder
meanwhile. The small arm's k-th comes later than the large arm's k-th, so those two must not be
compared. Instead the first outcome is put beside the second, the third beside the fourth, and so
on; what is left are the twos with both arms. Which arm comes first in these is a fair coin, however
unequal the shares s and 1−s are::

    P(new, old) = s · (1−s) = P(old, new)

(von Neumann 1951, *Various techniques used in connection with random digits*.) So of the pairs that
differ, one that is not better wins at most half, whatever time does to both. It costs little:
s(1−s) pairs an outcome, 0.16 instead of 0.2.

The aliases rule, not the experiment: the server draws nobody once ``champion`` has moved, and
``reconcile`` ends what no longer fits them. Outcomes of an earlier experiment are not used again:
what promoted an adapter does not watch over it.

Left out: graded scores, of which E would need fewer pairs; users who score one arm more often than
the other; who a user really is. Users whose key may not use both arms are in no experiment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from ..hub.registry import Version
from ..serving.assignment import Experiment
from ..serving.experiments import Experiments
from ..serving.tenants import LOCAL
from .gate import PASS, Rules, better
from .pairs import Pairs, betting


class Live:
    """The loop's experiments on a server's users.

    ``share``: of the users, who get the one that is not the champion; ``tenant``: of the server,
    whose users they are. Raises ``ValueError`` unless 0 < share < 1.
    """

    def __init__(self, experiments: Experiments, share: float = 0.2, tenant: str = LOCAL.name):
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share!r}")
        self.experiments, self.share, self.tenant = experiments, share, tenant

    def begun(self, name: str) -> list[tuple[Experiment, bool]]:
        """This loop's experiments on an adapter's name, and whether they run; newest first."""
        return [
            (each, runs)
            for each, runs in self.experiments.all()
            if each.model == name and each.tenant == self.tenant and each.name.startswith("loop ")
        ]

    def running(self, name: str) -> Experiment | None:
        """The one that runs, if there is one."""
        return next((each for each, runs in self.begun(name) if runs), None)

    def begin(self, old: Version, new: Version, champion: Version) -> str:
        """Let users try both, one of which is the champion; returns what to tell."""
        other = new if champion.version == old.version else old
        arms = {"old": old.spec, "new": new.spec}
        running = self.running(old.name)
        if running is not None and is_on(running, old, new, champion):
            return ""
        self.end(old.name)
        name = f"loop {old.name} {champion.version} serves, {other.version} is tried, "
        name += f"for {self.tenant} since {time.time():.6f}"
        shares = {
            arm: self.share if spec == other.spec else 1 - self.share for arm, spec in arms.items()
        }
        made = Experiment(name, old.name, arms, shares, tenant=self.tenant, champion=champion.spec)
        try:
            self.experiments.start(made)
        except ValueError as error:  # the owner, or another loop, runs one on this name
            return f"no live pairs: {error}"
        return f"{self.share:.0%} of the users get {other.spec}, to compare"

    def end(self, name: str) -> None:
        """Everybody gets the champion again."""
        if (running := self.running(name)) is not None:
            with suppress(ValueError):  # ended by somebody else just now
                self.experiments.end(running.name)

    def reconcile(
        self, champion: Version | None, previous: Version | None, challenger: Version | None
    ) -> None:
        """End what does not fit the aliases any more, and begin what a kill left out: they may have
        been moved by hand, by a rollback, or by a loop that was killed before its experiment.
        """
        if champion is None:
            return
        pairs = [(champion, challenger)] if challenger else []
        pairs += [(previous, champion)] if previous else []
        pairs = [(old, new) for old, new in pairs if old.version != new.version]
        running = self.running(champion.name)
        if running is not None and not any(is_on(running, *pair, champion) for pair in pairs):
            self.end(champion.name)
        if len(pairs) != 1 or pairs[0][1] is not champion:
            return
        old = pairs[0][0]
        was = any(is_on(each, old, champion, champion) for each, _ in self.begun(champion.name))
        if champion.manifest.parent == old.spec and not was:
            self.begin(old, champion, champion)

    def pairs(self, old: Version, new: Version) -> Pairs:
        """The running experiment's, if it is on these two."""
        running = self.running(old.name)
        if running is None or dict(running.arms) != {"old": old.spec, "new": new.spec}:
            return Pairs()
        return in_twos(self.experiments.outcomes(running.name))


def is_on(experiment: Experiment, old: Version, new: Version, champion: Version) -> bool:
    """Whether it compares these two, one of which serves."""
    arms = {"old": old.spec, "new": new.spec}
    return dict(experiment.arms) == arms and experiment.champion == champion.spec


def no_worse(pairs: Pairs, rules: Rules) -> bool:
    """Whether a promoted adapter needs no more watching: it is better, or loses less than
    ``worth``, or these are the most pairs.

    >>> few, many = Pairs((True,) * 7, (False,) * 7), Pairs((True,) * 300, (True,) * 300)
    >>> no_worse(few, Rules()), no_worse(many, Rules())  # seven lost: one more would show harm
    (False, True)
    """
    close = betting(pairs.differences, -rules.worth) >= rules.bar
    return close or better(pairs, rules).state == PASS or len(pairs) >= rules.most


def in_twos(outcomes: Sequence[tuple[str, float]]) -> Pairs:
    """The first outcome beside the second, the third beside the fourth; those with both arms.

    >>> in_twos([("old", 0.0), ("new", 1.0), ("old", 0.0), ("old", 1.0), ("new", 1.0)])
    Pairs(old=(False,), new=(True,))
    """
    twos = [dict(two) for two in zip(outcomes[::2], outcomes[1::2], strict=False)]
    both = [two for two in twos if len(two) == 2]
    return Pairs(tuple(t["old"] >= 0.5 for t in both), tuple(t["new"] >= 0.5 for t in both))
