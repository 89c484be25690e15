"""Live pairs: a share of the server's users gets the other adapter, until evidence decides.

    a challenger waits     arms old = the champion, new = the challenger (``share`` of the users)
    after a promotion      arms old = the one before (``share``), new = the champion

An experiment of the server (serving/experiments.py), in the folder that both share: it draws the
users, and ``/v1/feedback`` gives the scores. Only a user's first outcome counts, for the arm that
was drawn. The k-th outcome of one arm beside the k-th of the other is a pair, and of the pairs that
differ, the new one wins at most half where it is not better. A score of ½ or more is right.

Outcomes of an earlier experiment are not used again: what promoted an adapter does not watch over
it.

Left out: graded scores, of which E would need fewer pairs. Users whose key may not use both arms
are in no experiment.
"""

from __future__ import annotations

import time
from contextlib import suppress

from ..hub.registry import Version
from ..serving.assignment import Experiment
from ..serving.experiments import Experiments
from .pairs import Pairs


class Live:
    """The loop's experiments on a server's users.

    ``share``: of the users, who get the one that is not the champion. Raises ``ValueError`` unless
    0 < share < 1.
    """

    def __init__(self, experiments: Experiments, share: float = 0.2):
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share!r}")
        self.experiments, self.share = experiments, share

    def running(self, name: str) -> Experiment | None:
        """The loop's experiment on an adapter's name, if there is one."""
        begun = (each for each, runs in self.experiments.all() if runs and each.model == name)
        return next((each for each in begun if each.name.startswith(f"loop {name} ")), None)

    def begin(self, old: Version, new: Version, champion: Version) -> str:
        """Let users try both, one of which is the champion; returns what to tell."""
        other, arms = (
            new if champion.version == old.version else old,
            {"old": old.spec, "new": new.spec},
        )
        shares = {
            arm: self.share if spec == other.spec else 1 - self.share for arm, spec in arms.items()
        }
        name = f"loop {old.name} {champion.version} serves, {other.version} is tried, "
        if (running := self.running(old.name)) is not None and running.name.startswith(name):
            return ""
        self.end(old.name)
        name += f"since {time.time():.6f}"
        try:
            self.experiments.start(Experiment(name, old.name, arms, shares))
        except ValueError as error:  # the owner runs one of their own on this name
            return f"no live pairs: {error}"
        return f"{self.share:.0%} of the users get {other.spec}, to compare"

    def end(self, name: str) -> None:
        """Everybody gets the champion again."""
        if (running := self.running(name)) is not None:
            with suppress(ValueError):  # ended by somebody else just now
                self.experiments.end(running.name)

    def pairs(self, old: Version, new: Version) -> Pairs:
        """The running experiment's, if it is on these two."""
        running = self.running(old.name)
        if running is None or dict(running.arms) != {"old": old.spec, "new": new.spec}:
            return Pairs()
        outcomes = self.experiments.outcomes(running.name)
        sides = {arm: [score >= 0.5 for a, score in outcomes if a == arm] for arm in running.arms}
        count = min(map(len, sides.values()))
        return Pairs(tuple(sides["old"][:count]), tuple(sides["new"][:count]))
