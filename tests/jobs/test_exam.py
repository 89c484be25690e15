"""Questions drawn block by block: the same for all, no more than are needed, none twice."""

from collections import Counter

import numpy as np
import pytest

from minilora import Example
from minilora.jobs import exam
from minilora.jobs.correction import Feedback
from minilora.jobs.exam import Exam, fair, shared
from minilora.jobs.feedback import OWNER, FeedbackStore
from minilora.jobs.gate import Measured, decide
from minilora.jobs.pairs import Pairs, gain_evidence


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Held-out questions of ann and, later, twenty of the owner's; a model is what it knows."""
    monkeypatch.setattr(
        exam, "right", lambda model, asked: tuple(int(e.output) in model for e in asked)
    )
    store = FeedbackStore(tmp_path, quarantine=0)
    for number in range(20, 100):
        store.add(Feedback("ann", "", f"Number {number}?", str(number)), now=number)
    store.review()
    store.reserve([Example(f"Number {n}?", str(n)) for n in range(20)])  # as a round does it
    return store


def never(answers):
    return False


def test_it_stops_as_soon_as_enough_is_known_and_draws_no_more(store):
    sitting = Exam(store, set(), block=5, most=100)
    answers = sitting.sit(set(range(200)), lambda answers: sum(answers.values()) >= 8)
    assert len(answers) == 10
    assert sitting.pairs(answers) == Pairs((False,) * 10, (True,) * 10)


def test_the_next_candidate_gets_the_same_questions_and_goes_on_from_there(store):
    total = len(store.rows("heldout"))
    sitting = Exam(store, set(), block=7, most=1000)
    one = sitting.sit(set(), lambda answers: True)
    other = sitting.sit(set(range(200)), never)
    assert len(one) == 7
    assert len(other) == total
    assert shared(one, other) == Pairs((False,) * 7, (True,) * 7)


def test_each_block_has_the_reserves_share(store):
    """Users ask what the champion got wrong: alone in the first blocks, they would decide."""
    for _ in range(2):  # also when the reserve has judged, and complaints are new
        total = len(store.rows("heldout"))
        sitting = Exam(store, set(), block=5, most=1000)
        sitting.sit(set(), never)
        for end in range(5, total + 1, 5):
            owners = sum(each.source == OWNER for each in sitting.drawn[:end])
            assert abs(owners - 20 * end / total) < 2
        for number in range(200, 240):
            store.add(Feedback("bob", "", f"Number {number}?", str(number)))
        store.review()


def test_most_is_the_most_and_a_source_can_be_left_out(store):
    sitting = Exam(store, set(), block=4, most=30)
    assert len(sitting.sit(set(), never)) == 30
    assert len(Exam(store, set(), block=4, most=9).sit(set(), never)) == 9, "also if one is left"
    without = sitting.sit(set(), never, without="ann")
    asked = {each.digest: each.source for each in sitting.drawn}
    assert without
    assert {asked[digest] for digest in without} == {OWNER}
    everything = sitting.sit(set(), never)
    assert sitting.pairs_without(everything) == {"users": sitting.pairs(without)}


def test_complaints_alone_promote_nobody(store):
    """Users asked what the champion got wrong: the new one wins there, and is no better outside."""
    owners = {n for n in range(20)}
    sitting = Exam(store, owners, block=100, most=1000)
    answers = sitting.sit(set(range(100)), never)
    whole, others = sitting.pairs(answers), sitting.pairs_without(answers)
    assert gain_evidence(whole.wins, whole.losses) > 1000
    assert decide(Measured(whole)).word == "promote", "what a gate does that asks complaints"
    assert decide(Measured(whole, without=others)).word == "wait"


def test_an_equal_adapter_with_other_mistakes_is_not_promoted_by_complaints():
    """100 complaints beside 300 reserved questions, 100 rounds, a look after each block."""
    dice, promoted = np.random.default_rng(1), Counter()
    for _ in range(100):
        sources = dice.permutation(["ann"] * 50 + ["bob"] * 50 + [OWNER] * 300).tolist()
        old, new = dice.random((2, 400)) < 0.8
        old &= np.array(sources) == OWNER  # users complain of what it got wrong
        words = {"all": set(), "fair": set()}
        for seen in range(100, 401, 100):
            pairs = Pairs(tuple(old[:seen].tolist()), tuple(new[:seen].tolist()))
            words["all"].add(decide(Measured(pairs)).word)
            without = fair(sources[:seen], pairs)
            words["fair"].add(decide(Measured(pairs, without=without)).word)
        promoted.update(rule for rule, said in words.items() if "promote" in said)
    assert promoted["all"] > 90
    assert promoted["fair"] <= 5
