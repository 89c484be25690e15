"""The gate against fair coins, planted differences and integrals of its own."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.jobs.gate import Check, Measured, Pairs, Rules, Verdict, betting, culprit, decide


def pairs(wins, losses, both=0):
    return Pairs(
        (False,) * wins + (True,) * losses + (True,) * both,
        (True,) * wins + (False,) * losses + (True,) * both,
    )


FINE = pairs(0, 0, 200)


def test_it_promotes_what_is_shown_better_and_waits_for_what_is_not():
    assert decide(Measured(pairs(12, 1), FINE)).word == "promote"
    assert decide(Measured(pairs(3, 1), FINE)).word == "wait"
    assert decide(Measured(FINE, FINE)).word == "wait"
    assert decide(Measured(pairs(1, 12), FINE)).word == "reject"


def test_live_pairs_add_to_the_held_out_ones():
    assert decide(Measured(pairs(3, 0), FINE, live=pairs(5, 0))).word == "promote"


def test_candidates_that_shared_the_examples_raise_the_bar():
    assert decide(Measured(pairs(7, 0), FINE)).word == "promote"
    assert decide(Measured(pairs(7, 0), FINE, candidates=10)).word == "wait"


def test_a_gain_does_not_pay_for_a_regression():
    verdict = decide(Measured(pairs(30, 0), pairs(0, 40, 160)))
    assert verdict.word == "reject"
    assert verdict.check("regression").state == "fail"
    assert "40 lost" in verdict.reason


def test_too_few_old_questions_prove_nothing():
    verdict = decide(Measured(pairs(30, 0), pairs(0, 0, 10)))
    assert verdict.word == "wait"
    assert verdict.check("regression").state == "open"


@pytest.mark.parametrize(
    ("lost", "state"), [(0.0, "pass"), (0.09, "open"), (0.4, "fail"), (-0.1, "pass")]
)
def test_prose(lost, state):
    windows = [(2.0, 2.0 + lost)] * 60
    assert decide(Measured(FINE, FINE, prose=windows)).check("prose").state == state


def test_one_window_far_worse_fails_at_once():
    windows = [(2.0, 1.9)] * 99 + [(2.0, 3.5)]
    assert decide(Measured(FINE, FINE, prose=windows)).check("prose").state == "fail"


def test_one_lost_topic_is_enough():
    canaries = {"Hull": pairs(0, 4, 1), "Fuel": pairs(0, 0, 5)}
    verdict = decide(Measured(pairs(30, 0), FINE, canaries=canaries))
    assert verdict.word == "reject"
    assert "Hull (4 of 5)" in verdict.reason
    never_known = {"Hull": Pairs((False,) * 5, (False,) * 5)}
    assert decide(Measured(pairs(30, 0), FINE, canaries=never_known)).word == "promote"


def test_the_culprit_is_the_first_without_whom_nothing_fails():
    bad, undecided = Verdict((Check("a", "fail", ""),)), Verdict((Check("a", "open", ""),))
    assert culprit("abc", {"a": bad, "b": undecided, "c": undecided}.get) == "b"
    assert culprit("a", {"a": bad}.get) == ""


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0}, {"alpha": 1}, {"margin": 0}, {"prose_margin": 2.0}, {"canary_share": 1}]
)
def test_bad_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)


def test_pairs_have_two_sides():
    with pytest.raises(ValueError, match="1 of the old and 2 of the new"):
        Pairs((True,), (True, False))


@given(st.integers(1, 5), st.floats(-0.9, 0.9))
def test_the_bet_has_mean_one_at_most_under_its_null(n, mean):
    """Every sequence of a two-valued variable of that mean, weighted: the expectation is 1."""
    up = (mean + 1) / 2  # the chance of +1, else -1
    expected = 0.0
    for values in itertools.product((-1.0, 1.0), repeat=n):
        chance = math.prod(up if value > 0 else 1 - up for value in values)
        expected += chance * betting(values, mean)
    assert expected == pytest.approx(1.0, rel=1e-9)


def test_a_bet_refuses_what_it_was_not_made_for():
    for values, mean in (([2.0], 0.0), ([0.0], 1.0)):
        with pytest.raises(ValueError, match="in \\[-1, 1\\]"):
            betting(values, mean)


def test_the_promise_holds_with_a_look_after_each_pair():
    """Equal adapters, 300 runs of 200 pairs: promoted in at most 5% (and a standard error)."""
    dice = np.random.default_rng(0)
    promoted = 0
    for _ in range(300):
        old, new = dice.random((2, 200)) < 0.8
        won, lost = (new & ~old).cumsum(), (old & ~new).cumsum()
        looks = sorted(set(zip(won.tolist(), lost.tolist(), strict=True)))
        promoted += any(decide(Measured(pairs(*look), Pairs())).word == "promote" for look in looks)
    assert promoted <= 300 * 0.05 + 4
