"""Breakers: two thresholds, no flapping, one probe; and who answers instead."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.serving.failover import Breaker, Choice, Failover, Limits
from minilora.serving.refusals import Refused

from ..clock import Clock

OLD, NEW = "naval@1.0.0", "naval@1.1.0"


def failed(breaker, times):
    for _ in range(times):
        breaker.report(breaker.enter(), False)


def test_the_first_threshold_opens_and_the_second_closes():
    clock = Clock()
    breaker = Breaker(Limits(), clock)
    failed(breaker, 4)
    assert breaker.enter() is not None
    failed(breaker, 1)
    assert breaker.enter() is None
    assert breaker.reason == "5 of its last 5 answers failed"
    clock.now += 4.9
    assert breaker.enter() is None
    assert breaker.wait == pytest.approx(0.1)
    clock.now += 0.2
    for _ in range(3):
        assert breaker.is_open
        probe = breaker.enter()
        assert breaker.enter() is None  # one at a time
        breaker.report(probe, True)
    assert not breaker.is_open
    failed(breaker, 4)  # the window is empty again
    assert not breaker.is_open


def test_a_relapse_waits_twice_as_long():
    clock = Clock()
    breaker = Breaker(Limits(), clock)
    failed(breaker, 5)
    for doubled in (5, 10, 20, 40):
        assert breaker.wait == pytest.approx(doubled)
        clock.now += doubled
        breaker.report(breaker.enter(), False)
    clock.now += 80
    for _ in range(3):
        breaker.report(breaker.enter(), True)
    clock.now += 1000
    failed(breaker, 5)
    assert breaker.wait == 5  # a calm time is no relapse


def test_the_cool_down_grows_to_sixty_four_times_and_no_further():
    clock = Clock()
    breaker = Breaker(Limits(failures=1, window=1), clock)
    failed(breaker, 1)
    for _ in range(9):
        clock.now += breaker.wait
        failed(breaker, 1)
    assert breaker.wait == pytest.approx(5 * 64)


@pytest.mark.parametrize(("seconds", "wait"), [(9, 10), (10, 10), (11, 5)])
def test_who_fails_soon_after_it_closed_has_relapsed(seconds, wait):
    """Within two cool-downs; later it is a failure of its own."""
    clock = Clock()
    breaker = Breaker(Limits(failures=2, window=2, successes=1), clock)
    failed(breaker, 2)
    clock.now += 5
    breaker.report(breaker.enter(), True)
    assert not breaker.is_open
    assert breaker.wait == 0
    clock.now += seconds
    failed(breaker, 2)
    assert breaker.wait == pytest.approx(wait)


def test_only_the_last_window_counts():
    breaker = Breaker(Limits(failures=2, window=3), Clock())
    for ok in (False, True, True, False, True):
        breaker.report(breaker.enter(), ok)
    assert not breaker.is_open
    failed(breaker, 1)
    assert breaker.is_open
    assert breaker.reason == "2 of its last 3 answers failed"


def test_a_failed_probe_takes_back_the_successes_before_it():
    clock = Clock()
    breaker = Breaker(Limits(failures=1, window=1, successes=2), clock)
    failed(breaker, 1)
    clock.now += 5
    breaker.report(breaker.enter(), True)
    failed(breaker, 1)
    clock.now += 10
    breaker.report(breaker.enter(), True)
    assert breaker.is_open, "one success is not two in a row"
    assert breaker.successes == 1


def test_who_left_says_nothing_and_frees_the_probe():
    clock = Clock()
    breaker = Breaker(Limits(failures=1, window=1), clock)
    failed(breaker, 1)
    clock.now += 5
    breaker.report(breaker.enter(), None)
    assert breaker.enter() is not None
    clock.now += 4.9
    assert breaker.enter() is None
    clock.now += 0.2  # a probe that never reports does not lock the adapter out for ever
    assert breaker.enter() is not None


def test_a_late_answer_of_before_the_opening_counts_nothing():
    clock = Clock()
    breaker = Breaker(Limits(failures=2, window=4, successes=1), clock)
    late = breaker.enter()
    failed(breaker, 2)
    breaker.report(late, True)
    assert breaker.is_open
    clock.now += 5
    breaker.report(breaker.enter(), True)
    breaker.report(late, False)
    assert list(breaker.results) == []


def test_slow_is_failed_where_there_is_a_budget():
    breaker = Breaker(Limits(failures=2, window=4, budget=0.5), Clock())
    for seconds in (0.4, 0.5, 0.6, 0.7):  # in time, just in time, late, late
        assert not breaker.is_open
        breaker.report(breaker.enter(), True, seconds)
    assert breaker.is_open
    easy = Breaker(Limits(failures=1, window=4), Clock())
    easy.report(easy.enter(), True, 99.0)
    assert not easy.is_open


@given(
    st.floats(0, 1),
    st.randoms(use_true_random=False),
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 4),
)
def test_no_flapping_under_any_rate_of_failure(rate, dice, failures, more, successes):
    """Requests every 0.1 s, up to four at once, each failing with ``rate``, whatever the order."""
    limits = Limits(failures, failures + more, cooldown=2.0, successes=successes)
    clock = Clock()
    breaker, begun, openings, row, since = Breaker(limits, clock), [], [], 0, []
    for _ in range(600):
        clock.now += 0.1
        was_open, opened_at = breaker.is_open, breaker.opened
        ticket = breaker.enter()
        if ticket is not None:
            assert not was_open or clock.now >= opened_at + limits.cooldown - 1e-9
            begun.append((ticket, dice.random() >= rate))
        if len(begun) > 3 or (begun and dice.random() < 0.5):
            ticket, ok = begun.pop(dice.randrange(len(begun)))
            counts = ticket == breaker.round
            breaker.report(ticket, ok)
            if counts and was_open:
                row = row + 1 if ok else 0
            elif counts:
                since.append(ok)
        if breaker.is_open and not was_open:  # it opened: not for less than the first threshold
            assert since[-limits.window :].count(False) >= failures
            openings.append(clock.now)
            row = 0
        if was_open and not breaker.is_open:  # it closed: not for less than the second
            assert row >= successes
            since = []
    gaps = [later - earlier for earlier, later in pairwise(openings)]
    assert all(gap >= limits.cooldown - 1e-9 for gap in gaps)
    if rate == 1.0:
        assert len(openings) == 1  # it is found broken once, and probed ever more rarely


def test_many_sick_minutes_make_few_changes():
    """Half of the answers fail for ten minutes: one threshold would change 3,000 times."""
    clock, dice = Clock(), random.Random(0)
    breaker, changes = Breaker(Limits(), clock), 0
    for _ in range(6000):
        clock.now += 0.1
        was = breaker.is_open
        ticket = breaker.enter()
        if ticket is not None:
            breaker.report(ticket, dice.random() < 0.5)
        changes += was != breaker.is_open
    assert changes <= 20


def test_who_answers_instead():
    failover = Failover(Limits(failures=1, window=1), clock=Clock())
    assert failover.choose(NEW, [OLD]) == Choice(NEW, 0)
    failover.report(failover.choose(NEW, [OLD]), False)
    instead = failover.choose(NEW, [OLD])
    assert instead.adapter == OLD
    assert instead.why == f"{OLD} answers for {NEW}: 1 of its last 1 answers failed"
    failover.report(instead, False)
    with pytest.raises(Refused, match="cannot answer now") as refused:
        failover.choose(NEW, [OLD])  # the base was not allowed
    assert (refused.value.status, refused.value.headers) == (503, {"retry-after": "5"})
    base = failover.choose(NEW, [OLD, None])
    assert base.adapter is None
    assert base.why.startswith("the base answers for")
    assert set(failover.states()) == {OLD, NEW}


def test_it_is_worth_asking_again_when_the_first_of_them_may_be_probed():
    clock = Clock()
    failover = Failover(Limits(failures=1, window=1, cooldown=20), clock=clock)
    failover.report(failover.choose(OLD), False)
    clock.now += 12
    failover.report(failover.choose(NEW), False)
    with pytest.raises(Refused) as refused:
        failover.choose(NEW, [OLD])
    assert refused.value.headers == {"retry-after": "8"}
    assert refused.value.message.startswith(f"{NEW} cannot answer now: 1 of its last")
    with pytest.raises(Refused) as refused:
        Failover(clock=clock).choose(NEW, failed=[NEW])
    assert refused.value.headers == {"retry-after": "1"}, "nothing to wait for is known"


def test_who_failed_this_request_is_not_asked_again():
    failover = Failover(clock=Clock())
    assert failover.choose(NEW, [OLD], failed=[NEW]).adapter == OLD
    with pytest.raises(Refused):
        failover.choose(NEW, [OLD], failed=[NEW, OLD])
    assert failover.choose(NEW, [NEW, None], failed=[NEW]).adapter is None
    assert failover.choose(None).adapter is None


def test_quality_keeps_an_adapter_out_while_the_evidence_stands():
    bad = {NEW: "worse in the experiment greeting (E = 25)"}
    failover = Failover(worse=bad.get, clock=Clock())
    choice = failover.choose(NEW, [OLD])
    assert choice.adapter == OLD
    assert "E = 25" in choice.why
    bad.clear()
    assert failover.choose(NEW, [OLD]).adapter == NEW


def test_an_answer_without_a_time_is_not_slow():
    failover = Failover(Limits(failures=1, window=1, budget=0.5), clock=Clock())
    failover.report(failover.choose(NEW), True)
    assert failover.choose(NEW, [OLD]).adapter == NEW


def test_a_worse_adapter_answers_where_nobody_may_step_in():
    bad = {NEW: "worse in the experiment greeting (E = 25)"}
    failover = Failover(Limits(failures=1, window=1), bad.get, Clock())
    choice = failover.choose(NEW, [NEW])  # it is the champion
    assert choice.adapter == NEW
    assert choice.why.startswith(f"{NEW} answers, since nobody may step in: worse in the")
    failover.report(choice, False)
    with pytest.raises(Refused, match="1 of its last 1 answers failed"):
        failover.choose(NEW, [NEW])
    assert failover.choose(NEW, [OLD]).adapter == OLD


def test_the_least_limits_are_taken_and_more_failures_than_the_window_are_not():
    assert Limits(failures=1, window=1, successes=1, cooldown=0.1).budget is None
    with pytest.raises(ValueError, match="failures ≤ window"):
        Limits(failures=3, window=2)
    for budget in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="a first token takes time: expected seconds, got"):
            Limits(budget=budget)


@pytest.mark.parametrize("field", ["failures", "successes", "cooldown"])
def test_limits_that_make_no_sense_are_refused(field):
    with pytest.raises(ValueError, match="failures ≤ window"):
        Limits(**{field: 0})
