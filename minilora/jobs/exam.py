"""The held-out questions of one round, drawn block by block, until enough is known.

Each question is put to the champion once and to each candidate once, so all are compared on the
same ones. A candidate that is clearly better or worse costs a block or two, and one that is hard to
tell the whole pool. An E-value may be looked at after each block, so stopping there costs nothing.

Users complain of what the champion got wrong. On those questions a new adapter can win and hardly
lose, and a user who taught it something wrong asks about just that. So users' questions can show
harm, but they cannot show alone that it is better: it must be so on the owner's questions too
(``fair``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .correction import OWNER, Feedback
from .feedback import FeedbackStore
from .pairs import Pairs
from .recipe import right

USERS = "users"  # without whose own questions the evidence must hold too


class Exam:
    """The questions of ``store``, ``block`` at a time and ``most`` at most, for ``champion``."""

    def __init__(self, store: FeedbackStore, champion: Any, block: int, most: int):
        self.store, self.champion, self.block, self.most = store, champion, block, most
        self.drawn: list[Feedback] = []
        self.old: list[bool] = []

    def draw(self) -> bool:
        """One more block, which the champion answers; False where there is none."""
        count = min(self.block, self.most - len(self.drawn))
        more = self.store.heldout(count, [each.digest for each in self.drawn]) if count > 0 else []
        self.drawn += more
        self.old += right(self.champion, [each.example for each in more])
        return bool(more)

    def sit(
        self, model: Any, is_enough: Callable[[dict[str, bool]], bool], without: str = ""
    ) -> dict[str, bool]:
        """A candidate's answers, by the question's digest; those of a source are left out."""
        answers: dict[str, bool] = {}
        asked = 0
        while asked < len(self.drawn) or self.draw():
            block = self.drawn[asked : asked + self.block]
            asked += len(block)
            fair = [each for each in block if each.source != without]
            given = right(model, [each.example for each in fair])
            answers |= dict(zip([each.digest for each in fair], given, strict=True))
            if is_enough(answers):
                break
        return answers

    def asked(self, answers: dict[str, bool]) -> list[Feedback]:
        """The questions that a candidate answered, in the order of the draw."""
        return [each for each in self.drawn if each.digest in answers]

    def pairs(self, answers: dict[str, bool]) -> Pairs:
        """The champion's answers beside a candidate's, in the same order."""
        both = [
            (old, answers[each.digest])
            for each, old in zip(self.drawn, self.old, strict=True)
            if each.digest in answers
        ]
        return Pairs(tuple(old for old, _ in both), tuple(new for _, new in both))

    def pairs_without(self, answers: dict[str, bool]) -> dict[str, Pairs]:
        """The same without the users' questions; nothing where no user asked."""
        return fair([each.source for each in self.asked(answers)], self.pairs(answers))


def fair(sources: Sequence[str], pairs: Pairs) -> dict[str, Pairs]:
    """Pairs without the users' questions; ``sources``: whose question each was.

    The owner's questions stay, and what the owner's program noted, which is nobody's question.

    >>> fair(["ann", "owner", ""], Pairs((True, True, False), (False, True, True)))
    {'users': Pairs(old=(True, False), new=(True, True))}
    >>> fair(["owner"], Pairs((True,), (True,)))
    {}
    """
    rest = [place for place, source in enumerate(sources) if source in (OWNER, "")]
    if len(rest) == len(sources):
        return {}
    return {USERS: Pairs(tuple(pairs.old[i] for i in rest), tuple(pairs.new[i] for i in rest))}


def shared(one: dict[str, bool], other: dict[str, bool]) -> Pairs:
    """Two candidates' answers to the questions that both were asked.

    >>> shared({"a": True, "b": False}, {"b": True, "c": True})
    Pairs(old=(False,), new=(True,))
    """
    both: Sequence[str] = [digest for digest in one if digest in other]
    return Pairs(tuple(one[each] for each in both), tuple(other[each] for each in both))
