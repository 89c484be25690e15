"""Deficit round robin: whoever waits gets the same number of tokens, in order of arrival."""

from hypothesis import given
from hypothesis import strategies as st

from minilora.serving.fairness import DeficitRoundRobin

costs = st.lists(st.integers(1, 300), min_size=1, max_size=20)


@given(st.dictionaries(st.sampled_from("abcd"), costs, min_size=1), st.sampled_from([8, 32, 256]))
def test_tenants_that_wait_have_been_served_equally_to_within_a_turn(queues, quantum):
    waiting = DeficitRoundRobin(quantum)
    for tenant, own in queues.items():
        for number, cost in enumerate(own):
            waiting.push(tenant, (tenant, number), cost)
    served, next_of = dict.fromkeys(queues, 0), dict.fromkeys(queues, 0)
    for _ in range(sum(map(len, queues.values()))):
        tenant, number = waiting.pop()
        assert number == next_of[tenant]
        next_of[tenant] += 1
        served[tenant] += queues[tenant][number]
        still = [served[each] for each in queues if next_of[each] < len(queues[each])]
        largest = max(map(max, queues.values()))
        assert not still or max(still) - min(still) <= quantum + largest
    assert waiting.pop() is None
    assert not waiting.credit


def test_three_who_wait_take_turns_in_the_order_in_which_they_came():
    waiting = DeficitRoundRobin(10)
    for tenant in "aaabbc":
        waiting.push(tenant, tenant, 10)
    assert [waiting.pop() for _ in range(6)] == [*"abcaba"]


def test_what_is_removed_is_not_served_and_a_refund_needs_somebody_who_waits():
    waiting = DeficitRoundRobin(10)
    waiting.push("a", "one", 10)
    waiting.push("a", "two", 10)
    assert waiting.credit == {"a": 0}, "a newcomer has none"
    assert waiting.remove("one")
    assert not waiting.remove("one")
    waiting.refund("a", 10)
    waiting.refund("b", 10)
    assert waiting.credit == {"a": 10}
    assert waiting.pop() == "two"
    assert len(waiting) == 0
