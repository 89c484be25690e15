"""Two arms side by side, against evidence by hand: ties, looks on the way, what is concluded."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minilora.serving.assignment import Experiment
from minilora.serving.comparison import NORMAL, TAU, compare
from minilora.serving.evidence import confidence_sequence, e_value, msprt, sample_ratio_e_value

BOTH = Experiment("greeting", "naval", {"old": "naval@1.0.0", "new": "naval@1.1.0"})
THREE = Experiment("greeting", "naval", {"a": "1", "b": "2", "c": "3"}, alpha=0.1)


def scores(new, old=0.0):
    """Outcomes of as many users of each arm."""
    pairs = zip([old] * len(new), new, strict=True)
    return [each for a, b in pairs for each in (("old", a), ("new", b))]


def test_a_tie_is_a_pair_and_speaks_for_nobody():
    (found,) = compare(BOTH, {}, scores([1.0] * 9 + [0.0] * 5))
    assert (found.wins, found.losses, found.pairs) == (9, 0, 14)
    assert found.now.e == e_value(9, 0)
    (worse,) = compare(BOTH, {}, scores([0.0] * 9 + [1.0] * 5, old=1.0))
    assert (worse.wins, worse.losses, worse.now.e) == (0, 9, e_value(0, 9))


def test_who_has_no_partner_yet_waits():
    outcomes = [("old", 0.0), ("new", 1.0), ("old", 0.0), ("old", 1.0)]
    (found,) = compare(BOTH, {"old": 3, "new": 1}, outcomes)
    assert (found.pairs, found.wins, found.users) == (1, 1, (3, 1))
    (nothing,) = compare(BOTH, {}, [("old", 0.0)], points=5)
    assert (nothing.pairs, nothing.points, nothing.now.e) == (0, (), 1.0)
    assert math.isnan(nothing.now.difference)


@pytest.mark.parametrize("count", [NORMAL - 1, NORMAL])
def test_what_rests_on_the_normal_limit_begins_at_thirty_pairs(count):
    values = [float(n % 3 > 0) for n in range(count)]
    now = compare(BOTH, {}, scores(values))[0].now
    mean, deviation = np.mean(values), np.std(values)
    assert now.difference == pytest.approx(mean)
    if count < NORMAL:
        assert (now.msprt, now.low, now.high) == (1.0, -1.0, 1.0)
        return
    assert now.msprt == pytest.approx(msprt(mean, deviation**2 / count, TAU))
    low, high = confidence_sequence(mean, deviation, count, BOTH.alpha)
    assert (now.low, now.high) == pytest.approx((max(low, -1.0), min(high, 1.0)))


def test_outcomes_that_are_all_alike_have_no_deviation_to_reckon_with():
    now = compare(BOTH, {}, scores([1.0] * 40))[0].now
    assert (now.msprt, now.difference, now.low, now.high) == (1.0, 1.0, -1.0, 1.0)


@pytest.mark.parametrize(("points", "count"), [(0, 1), (1, 1), (3, 3), (99, 10)])
def test_the_history_has_as_many_looks_as_asked_for_and_ends_with_all(points, count):
    (found,) = compare(BOTH, {}, scores([1.0] * 10), points)
    assert [point.pairs for point in found.points][-1] == 10
    assert len(found.points) == count
    assert found.points[-1] == found.now


def test_each_of_several_arms_is_asked_for_more_and_all_shares_are_looked_at():
    users = {"a": 30, "b": 30, "c": 3}
    outcomes = [("a", 0.0), ("b", 1.0), ("c", 0.0)] * 8
    second, third = compare(THREE, users, outcomes)
    assert second.limit == third.limit == pytest.approx(2 / 0.1)
    assert (second.arm, second.adapter, second.users) == ("b", "2", (30, 30))
    assert (third.arm, third.users, third.wins, third.losses) == ("c", (30, 3), 0, 0)
    expected = sample_ratio_e_value([30, 30, 3], [1 / 3] * 3)
    assert second.split == third.split == pytest.approx(expected)
    assert "users do not come in the planned shares" in second.verdict


def test_what_is_concluded_at_the_limit_itself_and_below():
    (found,) = compare(BOTH, {"old": 9, "new": 9}, scores([1.0] * 9))
    now = found.now
    at_the_limit = replace(found, limit=now.e)
    assert at_the_limit.verdict == f"new is better than old: E = {now.e:.3g}"
    assert replace(found, limit=now.e * 1.001).verdict.startswith("undecided")
    assert replace(found, limit=found.split).verdict.startswith("users do not come")
    worse = replace(at_the_limit, wins=0, losses=9)
    assert worse.verdict.startswith("old is better than new")
    alone = replace(found, limit=now.e * 1.001, worse=25.0)
    assert alone.verdict.startswith("new is worse than old: one-sided E = 25;")
    assert replace(worse, worse=25.0).verdict.startswith("old is better than new")


def test_evidence_that_was_there_once_is_not_undone_by_later_pairs():
    """By Ville's inequality the largest E so far counts."""
    (found,) = compare(BOTH, {}, scores([1.0] * 12 + [-1.0] * 9), points=21)
    assert found.now.e < found.limit < max(point.e for point in found.points)
    assert found.verdict.startswith("new is better than old")
