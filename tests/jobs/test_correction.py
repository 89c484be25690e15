"""One correction, its hashes, and the order in which the held-out ones judge."""

import stat

import pytest

from minilora.jobs.correction import OWNER, Feedback, hashed, is_heldout
from minilora.jobs.feedback_tables import DATABASE, in_turn

PLAIN = Feedback("ann", "id", "Status?", "Hull 90%.", "Hull 9%.", "Log: Hull 90%.", "Hull")


def test_it_teaches_what_should_have_been_said():
    example = PLAIN.example
    assert (example.instruction, example.input) == ("Status?", "Log: Hull 90%.")
    assert example.output == "Hull 90%."
    assert PLAIN.failed
    assert not Feedback("ann", "", "q", " right\n", "right ").failed


def test_its_hashes_are_of_what_was_asked_and_of_what_it_teaches():
    other = Feedback("bob", "x", " Status? ", "No.", "", "Log:  Hull 90%.\n", "t", "zeta")
    assert other.question == PLAIN.question == hashed("Status?", "Log: Hull 90%.")
    assert other.digest != PLAIN.digest == hashed("Status?", "Log: Hull 90%.", "Hull 90%.")
    assert PLAIN.heldout == is_heldout(PLAIN.question)
    assert hashed("a b") == hashed(" a\n b ") != hashed("ab")
    assert PLAIN.question.startswith("7edb15b539eee110"), "stores hold it, so it may not change"


def test_one_question_in_five_is_held_out():
    kept = [is_heldout(hashed(f"question {number}", "")) for number in range(1000)]
    assert 150 < sum(kept) < 250


def test_which_questions_are_held_out_never_changes():
    """Eight hexadecimal digits of the hash: with others, what judged would be learnt."""
    assert is_heldout("00000014" + "f" * 56)
    assert is_heldout("000000051" + "0" * 55)
    assert not is_heldout("00000015" + "0" * 56)


@pytest.mark.parametrize("name", ["source", "request", "correction"])
def test_what_it_needs_is_there(name):
    fields = {"source": "a", "adapter": "", "request": "b", "correction": "c", name: " \n"}
    with pytest.raises(ValueError, match=f"feedback needs a {name}, got an empty one"):
        Feedback(**fields)


def test_what_users_wrote_is_its_owners_alone(tmp_path):
    with DATABASE.writing(tmp_path):
        pass
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("name", ["source", "adapter", "request", "answer", "topic", "tenant"])
def test_its_fields_are_texts(name):
    fields = {"source": "a", "adapter": "", "request": "b", "correction": "c", name: 3}
    with pytest.raises(ValueError, match=name):
        Feedback(**fields)


def test_what_judged_least_comes_first_and_both_sides_take_turns():
    rows = [(number, "ann", f"a{number}", number % 2) for number in range(6)]
    rows += [(number, OWNER, f"o{number}", 0) for number in range(6, 9)]
    order = in_turn(rows)
    assert sorted(order) == list(range(9))
    assert [number in (6, 7, 8) for number in order] == [
        *(False, True, False, False, True, False, False, True, False)
    ]
    users = [number for number in order if number < 6]
    assert [number % 2 for number in users] == [0, 0, 0, 1, 1, 1]
    assert in_turn(rows[::-1]) == order, "whatever order the database gives"
    assert in_turn([]) == []
