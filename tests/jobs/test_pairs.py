"""Pairs and their evidence, against sums over every sequence and integrals of their own."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.jobs.pairs import Pairs, betting, gain_evidence, pairs_needed


def test_pairs_have_two_sides():
    with pytest.raises(ValueError, match="1 of the old and 2 of the new"):
        Pairs((True,), (True, False))


def test_pairs_are_joined_in_order_and_say_what_differs():
    both = Pairs((True, False), (False, True)) + Pairs((True,), (True,))
    assert both == Pairs((True, False, True), (False, True, True))
    assert both.differences == [-1.0, 1.0, 0.0]
    assert (both.wins, both.losses, len(both)) == (1, 1, 3)


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
    for values, mean in (([2.0], 0.0), ([0.0], 1.0), ([0.0, math.nan], 0.0)):
        with pytest.raises(ValueError, match="in \\[-1, 1\\]"):
            betting(values, mean)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 2), (2, 5), (40, 20)])
def test_the_evidence_of_a_gain_is_the_integral_that_it_says(wins, losses):
    p = (np.arange(200_000) + 0.5) / 400_000 + 0.5  # the midpoints of ½ … 1
    n = wins + losses
    integral = (2.0 ** (n + 3) * p**wins * (1 - p) ** (losses + 1)).mean() / 2
    assert gain_evidence(wins, losses) == pytest.approx(integral, rel=1e-4)


@given(st.integers(0, 6), st.floats(0.0, 0.5))
def test_a_gain_that_is_none_has_evidence_of_mean_one_at_most(n, p):
    expected = sum(
        math.comb(n, w) * p**w * (1 - p) ** (n - w) * gain_evidence(w, n - w) for w in range(n + 1)
    )
    assert expected <= 1 + 1e-9


def test_the_pairs_that_a_gain_needs_are_those_that_its_best_bet_takes():
    """The bet of one who knows p, on dice: its log grows as fast as the formula says."""
    dice = np.random.default_rng(0).random(200_000)
    differing, gain = 0.1, 0.03
    p = 0.5 + gain / (2 * differing)
    won, lost = (dice < differing * p).sum(), (dice > 1 - differing * (1 - p)).sum()
    growth = (won * math.log(2 * p) + lost * math.log(2 * (1 - p))) / len(dice)
    assert math.log(20) / growth == pytest.approx(pairs_needed(gain, differing), rel=0.1)


def test_where_all_that_differs_is_gained_each_such_pair_doubles_the_stake():
    assert pairs_needed(0.2, 0.2) == pytest.approx(math.log2(20) / 0.2)
    assert pairs_needed(1.0, 1.0, alpha=0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [(0.0, 0.1), (0.2, 0.1), (0.1, 1.1)])
def test_a_gain_above_what_differs_is_refused(wrong):
    with pytest.raises(ValueError, match="0 < gain <= differing <= 1"):
        pairs_needed(*wrong)
