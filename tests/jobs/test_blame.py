"""Who is expelled: only against evidence."""

import pytest

from minilora.jobs.blame import Trial, culprit
from minilora.jobs.gate import Check, Rules, Verdict
from minilora.jobs.pairs import Pairs

WELL, ILL = Verdict((Check("a", "pass", ""),)), Verdict((Check("a", "fail", "", harm=True),))
MISSED = Verdict((Check("better", "fail", ""),))  # no gain, and no harm


def healed(count, hurt=0):
    """Pairs of (with the source, without it): so many are right only without it."""
    return Pairs((False,) * count + (True,) * hurt, (True,) * count + (False,) * hurt)


def test_luck_expels_nobody():
    """The check fails with all and passes without ann; but hardly an answer is another."""
    assert culprit({"ann": Trial(WELL, healed(2, 1)), "bob": Trial(ILL, healed(0))}) == ""


def test_the_one_with_most_evidence_is_to_blame_whoever_was_tried_first():
    trials = {"ann": Trial(WELL, healed(12)), "mal": Trial(MISSED, healed(40, 2))}
    assert culprit(trials) == "mal"


def test_who_leaves_harm_behind_is_not_the_only_one():
    assert culprit({"ann": Trial(ILL, healed(40))}) == ""


@pytest.mark.parametrize(("suspects", "guilty"), [(1, "mal"), (3, "mal"), (4, "")])
def test_each_more_suspect_raises_the_bar(suspects, guilty):
    """Ten answers healed are E = 62: enough among three suspects (60), not among four (80)."""
    others = {f"s{n}": Trial(ILL, healed(0)) for n in range(suspects - 1)}
    assert culprit({**others, "mal": Trial(WELL, healed(10))}, Rules()) == guilty


def test_it_says_what_it_saw():
    assert "no harm is left; against the one with it 8 won and 1 lost of 9" in str(
        Trial(WELL, healed(8, 1))
    )
