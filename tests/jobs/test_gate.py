"""The gate against fair coins and planted differences."""

import numpy as np
import pytest

from minilora.jobs.gate import Measured, Rules, better, decide
from minilora.jobs.pairs import Pairs


def pairs(wins, losses, both=0):
    return Pairs(
        (False,) * wins + (True,) * losses + (True,) * both,
        (True,) * wins + (False,) * losses + (True,) * both,
    )


FINE = pairs(0, 0, 200)


def test_it_promotes_what_is_shown_better_and_waits_for_what_is_not():
    assert decide(Measured(pairs(12, 1), FINE)).word == "promote"
    assert decide(Measured(pairs(3, 1), FINE)).word == "wait"
    assert decide(Measured(pairs(1, 12), FINE)).word == "reject"


def test_a_worse_one_is_rejected_with_evidence_of_harm_and_an_equal_one_of_no_gain():
    worse, equal = better(pairs(1, 12, 100), Rules()), better(pairs(0, 0, 400), Rules())
    assert (worse.state, worse.harm) == ("fail", True)
    assert (equal.state, equal.harm) == ("fail", False)
    assert "E of a gain below 0.02" in equal.detail


def test_nothing_waits_beyond_the_most_pairs():
    undecided = pairs(40, 28, 1000)  # a gain of one point, if it is one
    assert better(undecided, Rules(worth=0.001)).state == "open"
    check = better(undecided, Rules(worth=0.001, most=1000))
    assert (check.state, check.harm) == ("fail", False)
    assert "1,000 pairs are the most" in check.detail


def test_a_gain_that_is_shown_is_let_in_at_the_last_pair():
    assert better(pairs(60, 20, 920), Rules(most=1000)).state == "pass"


def test_live_pairs_add_to_the_held_out_ones_and_do_not_stand_in_for_them():
    assert decide(Measured(pairs(5, 0), FINE, live=pairs(4, 0))).word == "promote"
    for few in (pairs(0, 0), pairs(3, 0), pairs(5, 4)):  # whoever invents users wins the rest
        verdict = decide(Measured(few, FINE, live=pairs(60, 0)))
        assert verdict.word == "wait"
        assert "without live pairs" in verdict.reason
    theirs = Measured(pairs(9, 0), FINE, without={"users": pairs(0, 0)}, live=pairs(60, 0))
    assert decide(theirs).word == "wait"
    harm = Measured(pairs(9, 0), FINE, live=pairs(0, 40))
    assert decide(harm).word == "reject", "harm they can show"


def test_a_source_does_not_vote_for_what_it_taught():
    """Nine questions are won, and all are the poisoner's own."""
    won, rest = pairs(9, 0, 100), pairs(0, 0, 100)
    assert decide(Measured(won, FINE, without={"ann": won})).word == "promote"
    verdict = decide(Measured(won, FINE, without={"ann": won, "mal": rest}))
    assert verdict.word == "wait"
    assert "without the questions of mal: 0 won and 0 lost" in verdict.reason


def test_a_round_that_has_asked_all_ends_whoever_asked_much():
    """A thousand pairs are the most; without ann's there are fewer, and no more can come."""
    rules = Rules(worth=0.001, most=1000)
    undecided, without = pairs(40, 28, 932), {"ann": pairs(38, 26, 836)}
    assert decide(Measured(undecided, FINE, without=without), rules).word == "reject"
    won, few = pairs(30, 2, 968), {"ann": pairs(5, 2, 893)}
    assert decide(Measured(won, FINE, without=few), rules).word == "reject"
    assert decide(Measured(won, FINE, without=few), Rules(worth=0.001)).word == "wait"


def test_a_fail_is_a_fail_whoever_asked():
    harm = decide(Measured(pairs(1, 12, 100), FINE, without={"ann": pairs(1, 5, 90)}))
    assert (harm.word, harm.harmful) == ("reject", True)
    no_gain = decide(Measured(pairs(0, 0, 300), FINE, without={"ann": pairs(0, 0, 20)}))
    assert (no_gain.word, no_gain.harmful) == ("reject", False)


def test_candidates_that_shared_the_examples_raise_the_bar():
    assert decide(Measured(pairs(9, 0), FINE)).word == "promote"
    assert decide(Measured(pairs(9, 0), FINE, candidates=10)).word == "wait"


def test_a_gain_does_not_pay_for_a_regression():
    verdict = decide(Measured(pairs(30, 0), pairs(0, 40, 160)))
    assert verdict.word == "reject"
    assert verdict.check("regression").state == "fail"
    assert "40 lost" in verdict.reason


def test_too_few_old_questions_prove_nothing_and_nothing_more_can_come():
    verdict = decide(Measured(pairs(30, 0), pairs(0, 0, 10)))
    assert (verdict.word, verdict.harmful) == ("reject", False)
    assert "a larger set could tell" in verdict.check("regression").detail


@pytest.mark.parametrize(
    ("lost", "state", "harm"),
    [(0.0, "pass", False), (0.09, "fail", False), (0.4, "fail", True), (-0.1, "pass", False)],
)
def test_prose(lost, state, harm):
    windows = [(2.0, 2.0 + lost)] * 60
    check = decide(Measured(FINE, FINE, prose=windows)).check("prose")
    assert (check.state, check.harm) == (state, harm)


@pytest.mark.parametrize("after", [2.5, 3.5])
def test_one_window_far_worse_fails_at_once_and_is_harm(after):
    """From the bound itself on: half a bit a byte."""
    windows = [(2.0, 1.9)] * 99 + [(2.0, after)]
    check = decide(Measured(FINE, FINE, prose=windows)).check("prose")
    assert (check.state, check.harm) == ("fail", True)
    assert "a window costs +" in check.detail


@pytest.mark.parametrize(
    "place", [0, 30, slice(None)], ids=["the first", "one of many", "all of them"]
)
def test_prose_that_is_no_number_is_harm_and_never_a_gain(place):
    windows = np.full((60, 2), 2.0)
    windows[place, 1] = np.nan
    check = decide(Measured(FINE, FINE, prose=windows.tolist())).check("prose")
    assert (check.state, check.harm) == ("fail", True)


def test_a_window_far_better_does_not_pay_for_many_that_are_worse():
    """A gain counts as the bound at most, as a loss can only be that much."""
    windows = [(2.0, 2.09)] * 99 + [(90.0, 2.0)]
    assert decide(Measured(FINE, FINE, prose=windows)).check("prose").state == "fail"


def test_one_lost_topic_is_enough():
    canaries = {"Hull": pairs(0, 4, 1), "Fuel": pairs(0, 0, 5)}
    verdict = decide(Measured(pairs(30, 0), FINE, canaries=canaries))
    assert verdict.word == "reject"
    assert verdict.harmful
    assert "Hull (4 of 5)" in verdict.reason
    never_known = {"Hull": Pairs((False,) * 5, (False,) * 5)}
    assert decide(Measured(pairs(30, 0), FINE, canaries=never_known)).word == "promote"


@pytest.mark.parametrize(("lost", "state"), [(2, "pass"), (3, "fail")])
def test_half_of_a_topics_canaries_may_go_and_no_more(lost, state):
    canaries = {"Hull": pairs(0, lost, 4 - lost), "Fuel": pairs(0, 0, 3)}
    check = decide(Measured(pairs(30, 0), FINE, canaries=canaries)).check("canaries")
    assert check.state == state
    if state == "pass":
        assert check.detail == "2 topics kept, 2 of 7 answers lost", "three are enough to judge"


def test_a_topic_of_few_sure_canaries_is_not_judged_and_that_is_said():
    canaries = {"red": pairs(0, 2, 0), "blue": pairs(0, 0, 5)}
    check = decide(Measured(pairs(30, 0), FINE, canaries=canaries)).check("canaries")
    assert check.state == "pass"
    assert check.detail.startswith("1 topics kept, 0 of 5 answers lost")
    assert "too few that the old one answers to judge red (2 of 2)" in check.detail


def test_a_strange_norm_waits_for_a_person():
    before = [{"q_proj": 2.0, "v_proj": 2.0}] * 3
    far, near = {"q_proj": 20.0, "v_proj": 2.0}, {"q_proj": 3.0, "v_proj": 1.5}
    verdict = decide(Measured(pairs(30, 0), FINE, norms=far, norms_before=before))
    assert verdict.word == "wait"
    assert "q_proj 20 after 2: a person promotes it, or nobody" in verdict.reason
    assert decide(Measured(pairs(30, 0), FINE, norms=near, norms_before=before)).word == "promote"
    assert decide(Measured(pairs(30, 0), FINE, norms=far)).word == "promote"  # there is no history


@pytest.mark.parametrize(
    "wrong",
    [
        *({"alpha": 0}, {"alpha": 1}, {"margin": 0}, {"worth": 1}, {"most": 0}, {"sure": 0}),
        *({"prose_margin": 2.0}, {"canary_share": 1}, {"norm_factor": 1}),
    ],
)
def test_bad_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)


def test_one_candidate_is_asked_for_no_more_than_the_bar():
    assert better(pairs(8, 0), Rules()).state == "pass", "E = 22.5, and 20 are asked for"


def test_the_ends_of_the_rules_are_taken():
    rules = Rules(most=1, sure=1, canary_share=0.0, norm_factor=1.01)
    lost = decide(Measured(pairs(30, 0), FINE, canaries={"Hull": pairs(0, 1, 9)}), rules)
    assert "lost Hull (1 of 10)" in lost.reason, "none may go"
    assert better(pairs(0, 0, 1), rules).state == "fail", "one pair was the most"


def test_the_promise_holds_with_a_look_after_each_pair():
    """Equal adapters, 300 runs of 200 pairs: promoted in far less than the 5% that is promised.

    Five are, so a gate that is twice as loose is seen; by the promise it would pass.
    """
    dice = np.random.default_rng(0)
    promoted = 0
    for _ in range(300):
        old, new = dice.random((2, 200)) < 0.8
        won, lost = (new & ~old).cumsum(), (old & ~new).cumsum()
        looks = sorted(set(zip(won.tolist(), lost.tolist(), strict=True)))
        promoted += any(decide(Measured(pairs(*look))).word == "promote" for look in looks)
    assert promoted <= 8


@pytest.mark.slow
def test_three_points_are_found_and_three_points_less_are_refused():
    """Adapters of dice that differ in 6% of the answers, a look after each 100 of 2,000 pairs."""
    dice, words = np.random.default_rng(1), {}
    for gain in (0.03, -0.03):
        words[gain] = [decided(dice.random(2000), gain) for _ in range(100)]
    assert words[0.03].count("promote") >= 90
    assert words[0.03].count("reject") <= 5 + 4
    assert words[-0.03].count("reject") >= 98
    assert "promote" not in words[-0.03]


def decided(draws, gain, differing=0.06):
    """The gate's word on one run: a question is won, lost, or the same for both."""
    won, lost = draws < (differing + gain) / 2, draws > 1 - (differing - gain) / 2
    for seen in range(100, len(draws) + 1, 100):
        wins, losses = int(won[:seen].sum()), int(lost[:seen].sum())
        verdict = decide(Measured(pairs(wins, losses, seen - wins - losses)))
        if verdict.word != "wait":
            return verdict.word
    return "wait"
