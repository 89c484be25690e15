"""One round's candidates, each judged beside the champion on the same questions.

A candidate is trained, measured on regression, canaries and prose, and then asked held-out
questions until the gate can decide. Candidates that leave a source out, to see who is to blame, are
asked the same questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..hub.registry import Version
from .blame import Trial
from .exam import Exam, shared
from .feedback import FeedbackStore
from .gate import OPEN, Verdict, decide
from .pairs import Pairs
from .recipe import Marks, Recipe, compared, marks


class Trainer(Protocol):
    """What the loop does for its judge (adapt.py)."""

    store: FeedbackStore
    recipe: Recipe

    def learn(self, examples: Any, parent: Any = None, **facts: Any) -> Version:
        """The version that learnt these examples."""

    def pulled(self, version: Version) -> Any:
        """A fresh base with a version's adapter."""

    def norms(self, version: Version, champion: Version) -> dict[str, Any]:
        """‖ΔW‖, its own and its predecessors'."""


@dataclass(frozen=True)
class Candidate:
    """One that was trained in this round: its answers to the exam, its marks, and the verdict.

    ``learnt``: how many of the users' examples it was taught.
    """

    version: Version
    learnt: int
    answers: dict[str, bool]
    marks: Marks
    verdict: Verdict


class Judge:
    """One round's comparison with ``champion``: the same questions for every candidate."""

    def __init__(self, loop: Trainer, champion: Version):
        self.loop, self.recipe, self.champion = loop, loop.recipe, champion
        model = loop.pulled(champion)
        self.before = marks(model, self.recipe)
        self.exam = Exam(loop.store, model, self.recipe.block, self.recipe.rules.most)

    def candidate(self, without: str = "", candidates: int = 1, seed: int = 0) -> Candidate:
        """Train one, a source left out of the training and of the exam, and judge it.

        ``seed``: added to the recipe's, for another draw of the same training.
        """
        loop, rules = self.loop, self.recipe.rules
        learnt = [each.example for each in loop.store.accepted({without})]
        facts: dict[str, Any] = {}
        if without:
            facts = {"without": without, "candidates": candidates}
        if seed:
            facts |= {"seed": seed}
        version = loop.learn([*self.recipe.old, *learnt], self.champion, **facts)
        model = loop.pulled(version)
        after, more = marks(model, self.recipe), loop.norms(version, self.champion)
        more["candidates"] = candidates

        def verdict(answers: dict[str, bool]) -> Verdict:
            pairs, others = self.exam.pairs(answers), self.exam.pairs_without(answers)
            return decide(compared(self.before, after, pairs, without=others, **more), rules)

        def is_enough(answers: dict[str, bool]) -> bool:
            now = verdict(answers)
            return now.harmful or now.check("better").state != OPEN

        answers = self.exam.sit(model, is_enough, without)
        return Candidate(version, len(learnt), answers, after, verdict(answers))

    def trial(self, first: Candidate, other: Candidate) -> Trial:
        """A candidate beside one without a source, on all that both were asked."""
        fixed = Pairs(first.marks.answers, other.marks.answers)
        return Trial(other.verdict, fixed + shared(first.answers, other.answers))

    def again(self, without: str, candidates: int) -> Trial:
        """The same with two trainings of another seed: was it the luck of the first two?"""
        return self.trial(self.candidate(seed=1), self.candidate(without, candidates, seed=1))
