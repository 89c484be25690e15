"""A wrong answer with the numbers of a mistake that the checker knows is told which."""

from types import SimpleNamespace

import pytest

from minilora.learn import answers, close
from minilora.learn.answers import judge_answer, judge_exercise, known_mistake
from minilora.learn.course import find_lesson, load_checks


def check_double(answer):
    close(answer(3.0), 6.0, what="2x")


def squared(x):
    """The square."""
    return x * x


def checks_with(**wrong):
    return SimpleNamespace(check_double=check_double, WRONG={"double": wrong})


@pytest.mark.parametrize(
    ("wrong", "end"),
    [
        ({"squared": squared, "same": lambda x: x}, ' known mistake, "squared": The square.'),
        ({"by itself": lambda x: x * x}, ' known mistake, "by itself"'),
        ({"squared": squared, "cubed, a third": lambda x: x**3 / 3}, ""),  # the same numbers
        ({"same": lambda x: x}, ""),
        ({}, ""),
    ],
    ids=["with-its-story", "a-lambda", "two-alike", "another", "none"],
)
def test_one_mistake_with_the_same_numbers_is_named(wrong, end):
    _, message = judge_answer(check_double, lambda x: 3 * x)
    assert "yours is 9" in message
    told = known_mistake(checks_with(**wrong), "double", message)
    assert told.endswith(end)
    assert bool(told) == bool(end)


def test_a_checker_that_takes_long_says_its_own_message_only(monkeypatch):
    monkeypatch.setattr(answers, "PATIENCE", -1.0)
    _, message = judge_answer(check_double, squared)
    assert known_mistake(checks_with(squared=squared), "double", message) == ""


def test_an_answer_that_took_long_is_not_compared_with_the_known_mistakes(monkeypatch):
    lesson, asked = find_lesson(1).path, []
    checks = checks_with(squared=squared)
    checks.check_weight_gradient = check_double  # the name of an exercise that is to be written
    monkeypatch.setattr(answers, "load_checks", lambda _: checks)
    monkeypatch.setattr(answers, "known_mistake", lambda *_: asked.append(1) or " Known.")
    assert judge_exercise(lesson, "weight_gradient", squared)[1].endswith(" Known.")
    monkeypatch.setattr(answers, "QUICK", -1.0)
    status, message = judge_exercise(lesson, "weight_gradient", squared)
    assert (status, "yours is 9" in message, asked) == ("wrong", True, [1])


def test_where_mistakes_are_to_be_found_none_is_named():
    lesson = find_lesson(7)
    wrong = load_checks(lesson.path).WRONG["train_steps"]["clears after"]
    _, message = judge_exercise(lesson.path, "train_steps", wrong)
    assert "yours is" in message
    assert "known mistake" not in message
