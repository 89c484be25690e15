"""The store: what comes in, what is let out, and what never is."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Example
from minilora.jobs.correction import Feedback, hashed
from minilora.jobs.feedback import WORN, FeedbackStore
from minilora.jobs.feedback_tables import DATABASE
from minilora.jobs.pairs import Pairs


def correction(number, source="ann", value="90", **more):
    log = f"Log: Hull {number}%."
    return Feedback(source, "id", "Hull?", f"Hull {value}%.", context=log, topic="Hull", **more)


def filled(folder, count=50, **settings):
    store = FeedbackStore(folder, **{"quarantine": 0, **settings})
    for number in range(count):
        store.add(correction(number), now=number)
    return store


def test_a_correction_counts_once_whatever_its_spaces(tmp_path):
    store = FeedbackStore(tmp_path)
    assert store.add(correction(1)) == "quarantine"
    assert store.add(correction(1, "bob")) == "known"
    spaced = Feedback("bob", "id", "Hull?  ", "Hull 90%.\n", context="Log:  Hull 1%.")
    assert store.add(spaced) == "known"


def test_a_secret_is_refused_and_nowhere_on_the_disk(tmp_path):
    store = FeedbackStore(tmp_path)
    key = "ghp_" + "a1" * 18
    told = store.add(Feedback("mal", "id", "My key?", f"It is {key}."))
    assert told == "refused"
    assert store.counts() == {"refused": 1}
    for file in tmp_path.iterdir():
        assert key.encode() not in file.read_bytes()


def test_quarantine_ends_after_its_time(tmp_path):
    store = FeedbackStore(tmp_path, quarantine=100)
    store.add(correction(1), now=1000)
    assert store.review(now=1050).kept == {"too new": 1}
    review = store.review(now=1101)
    assert review.accepted + review.heldout == 1


def test_corrections_that_contradict_each_other_stay(tmp_path):
    store = FeedbackStore(tmp_path, quarantine=0)
    store.add(correction(1))
    store.add(correction(1, "bob", value="12"))
    assert store.review().kept == {"contradicted": 2}


def test_a_source_cannot_teach_beyond_its_cap(tmp_path):
    store = filled(tmp_path, cap=10)
    store.add(correction(99, "bob"))
    review = store.review()
    assert Counter(each.source for each in store.accepted())["ann"] == 10
    assert review.kept["over the source's cap"] + review.accepted + review.heldout == 51
    assert store.accepted({"ann"}) == [e for e in store.accepted() if e.source == "bob"]


def test_one_in_five_questions_is_held_out_and_never_learnt(tmp_path):
    store = filled(tmp_path, count=200)
    store.review()
    held = {each.question for each in store.rows("heldout")}
    assert 20 < len(held) < 60
    assert not held & {each.question for each in store.accepted()}


def test_held_out_examples_rotate_and_wear_out(tmp_path):
    store = filled(tmp_path, count=60)
    store.review()
    total = len(store.rows("heldout"))
    first, second = store.heldout(total // 2), store.heldout(total // 2)
    assert not {each.digest for each in first} & {each.digest for each in second}
    rest = store.heldout(total, drawn=[each.digest for each in first])
    assert not {each.digest for each in first} & {each.digest for each in rest}
    before = len(store.accepted())
    for _ in range(WORN):
        store.heldout(total)
    assert len(store.rows("heldout")) == total, "in the middle of a round nothing moves"
    assert store.retire() == total
    assert store.rows("heldout") == []
    assert len(store.accepted()) == before + total


def test_a_reserve_that_is_worn_out_is_not_learnt_nor_is_a_user_past_his_cap(tmp_path):
    store = filled(tmp_path)
    store.review()
    before = len(store.accepted())
    store = FeedbackStore(tmp_path, cap=before + 2)
    store.reserve([Example("Fuel?", f"Fuel {n}%.", f"Log: {n}") for n in range(40)])
    total = len(store.rows("heldout"))
    for _ in range(WORN):
        store.heldout(total)
    assert store.retire() == total
    learnt = Counter(each.source for each in store.accepted())
    assert learnt == {"ann": before + 2}
    assert len(store.rows("worn")) == total - 2
    assert store.reserve([Example("Fuel?", "Fuel 0%.", "Log: 0")]) == 0, "it has judged enough"


def test_what_the_owner_reserves_judges_and_is_nobodys_failure(tmp_path):
    store = FeedbackStore(tmp_path)
    asked = [Example("Hull?", f"Hull {n // 2}%.", f"Log: {n}") for n in range(5)]
    assert store.reserve(asked) == 5
    assert store.reserve(asked) == 0
    drawn = [each.example for each in store.heldout(9)]
    assert sorted(drawn, key=asked.index) == asked
    assert store.slices() == []
    assert store.accepted() == []


def test_slices_name_the_topics_and_sources_that_fail(tmp_path):
    store = FeedbackStore(tmp_path)
    for number in range(4):
        store.add(correction(number, answer="Hull 90%." if number == 0 else "wrong"))
    store.add(Feedback("bob", "id", "Fuel?", "Fuel 1%.", "Fuel 1%.", topic="Fuel"))
    told = [(each.topic, each.source, each.failed, each.count) for each in store.slices()]
    assert told == [("Hull", "ann", 3, 4), ("Fuel", "bob", 0, 1)]
    assert store.slices(adapter="another") == []


def test_an_expelled_source_has_taught_nothing(tmp_path):
    store = filled(tmp_path)
    store.review()
    assert store.expel("ann", "poison") == 50
    assert store.accepted() == []
    assert store.heldout(9) == []
    assert store.slices() == [], "nobody has to look at it again"
    assert store.add(correction(99)) == "refused", "and it begins no second time"
    assert store.counts() == {"expelled": 50}
    assert store.add(correction(99, "bob")) == "quarantine"


def test_who_was_expelled_contradicts_nobody(tmp_path):
    store = FeedbackStore(tmp_path, quarantine=0)
    store.add(correction(1, "mal", value="12"))
    store.add(correction(1, "ann"))
    assert store.review().kept == {"contradicted": 2}
    store.expel("mal", "poison")
    review = store.review()
    assert (review.accepted + review.heldout, review.kept) == (1, {})


def test_a_secret_in_the_topic_is_refused_too(tmp_path):
    store = FeedbackStore(tmp_path)
    key = "ghp_" + "a1" * 18
    assert store.add(Feedback("mal", "id", "My key?", "No.", topic=f"keys {key}")) == "refused"
    for file in tmp_path.iterdir():
        assert key.encode() not in file.read_bytes()


def test_nobody_is_called_as_the_owner(tmp_path):
    """The owner's questions are not left out in turn, and the owner is never suspected."""
    store = FeedbackStore(tmp_path)
    with pytest.raises(ValueError, match="give the user another name"):
        store.add(correction(1, "owner"))
    assert store.counts() == {}


def test_an_exam_that_is_taken_again_proves_nothing_more(tmp_path):
    store = filled(tmp_path, count=60)
    store.review()
    asked = store.heldout(8)
    pairs = Pairs((False,) * 8, (True,) * 8)
    store.outcomes("a", "b", pairs, asked)
    store.outcomes("a", "b", pairs, asked)
    store.outcome("a", "b", True, False)
    store.outcome("a", "b", True, False)
    assert (store.live("a", "b").wins, store.live("a", "b").losses) == (8, 2)
    assert store.answered("a", "b")[0] == ["ann"] * 8 + [""] * 2
    store.outcomes("a", "c", pairs, asked)
    assert store.live("a", "c").wins == 8


def test_the_pairs_of_a_store_of_before_stay(tmp_path):
    """A file of the first schema, with a pair in it."""
    first = replace(DATABASE, migrations=DATABASE.migrations[:1])
    with first.writing(tmp_path) as db:
        db.execute(
            "insert into live (at, tenant, old, new, old_right, new_right)"
            " values (0, 'default', 'a', 'b', 0, 1)"
        )
    assert FeedbackStore(tmp_path).live("a", "b") == Pairs((False,), (True,))


def test_tenants_do_not_see_each_other(tmp_path):
    mine, other = (FeedbackStore(tmp_path, tenant) for tenant in ("mine", "other"))
    mine.add(correction(1, tenant="mine"))
    assert other.counts() == {}
    assert other.add(correction(1, tenant="other")) == "quarantine"
    with pytest.raises(ValueError, match="store of 'mine'"):
        mine.add(correction(2, tenant="other"))


def test_live_pairs_belong_to_two_adapters(tmp_path):
    store = FeedbackStore(tmp_path)
    store.outcome("a", "b", False, True)
    store.outcome("a", "c", True, False)
    assert store.live("a", "b").wins == 1
    assert len(store.live("b", "a")) == 0


@pytest.mark.parametrize(("cap", "seconds"), [(0, 1), (1, -1), (1, float("nan"))])
def test_bad_settings_are_refused(cap, seconds, tmp_path):
    with pytest.raises(ValueError, match="cap from 1 on"):
        FeedbackStore(tmp_path, quarantine=seconds, cap=cap)


@given(st.lists(st.text("ab", max_size=3), max_size=3), st.lists(st.text("ab", max_size=3)))
def test_equal_hashes_are_equal_texts(one, other):
    assert (hashed(*one) == hashed(*other)) == (one == other)
