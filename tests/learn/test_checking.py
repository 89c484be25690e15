"""The checker's sentences: what a class is told when an answer is a multiple of the right one."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis.strategies import integers

from minilora.learn import Wrong, cases, close, forbid
from minilora.learn.answers import judge_answer
from minilora.learn.checking import guess
from minilora.learn.course import find_lesson, list_lessons, load_checks, load_solutions

GIVE_NUMBERS = [
    (0, "adapter_size"),
    (1, "weight_gradient"),
    (3, "lora_gradients"),
    (5, "first_update"),
    (7, "train_steps"),
    (8, "largest_rank"),
    (9, "training_bytes"),
    (11, "bits_per_weight"),
    (12, "lean_product"),
    (13, "merge_once"),
    (14, "row_factor"),
    (14, "importance"),
    (15, "with_prompt"),
    (15, "bottleneck"),
    (16, "mixed_loss"),
    (17, "train_through_knobs"),
    (18, "probe"),
    (19, "ties"),
    (21, "mixed_rows"),
    (22, "paired_e_value"),
    (23, "gradient_of_all"),
    (24, "one_pass_product"),
]


def twice(value):
    """Two times an array, or each of several."""
    if isinstance(value, list | tuple):
        return type(value)(map(twice, value))
    return 2 * value


@pytest.mark.parametrize(("number", "name"), GIVE_NUMBERS)
def test_an_answer_twice_too_large_is_told_so(number, name):
    lesson = find_lesson(number)
    right = getattr(load_solutions(lesson.path), name)
    checker = getattr(load_checks(lesson.path), f"check_{name}")
    status, message = judge_answer(checker, lambda *given: twice(right(*given)))
    assert status == "wrong"
    assert "It is 2.00 times the right answer" in message


SLOW = (7, 16, 25)  # they train
QUICK_EXERCISES = [
    (lesson.number, name)
    for lesson in list_lessons()
    if lesson.number not in SLOW
    for name in lesson.exercises
]


def add_one_in_place(value: Any) -> None:
    """One more in each number of tensors and arrays, also of those in lists and dicts."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            add_one_in_place(each)
    elif isinstance(value, torch.Tensor) and value.dtype != torch.bool:
        with torch.no_grad():
            value += 1
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.flags.writeable:
        value += 1


@pytest.mark.parametrize(("number", "name"), QUICK_EXERCISES)
def test_an_answer_that_writes_into_what_it_was_given_is_told_no_wrong_number(number, name):
    """Once "yours is -1.78, a right answer has -1.39": -1.78 was right, and θ₀ had been changed."""
    lesson = find_lesson(number)
    right = getattr(load_solutions(lesson.path), name)

    def careless(*given: Any) -> Any:
        result = right(*given)
        has_history = isinstance(result, torch.Tensor) and result.requires_grad
        result = result.clone() if has_history else copy.deepcopy(result)
        add_one_in_place(given)
        return result

    checker = getattr(load_checks(lesson.path), f"check_{name}")
    _, message = judge_answer(checker, careless)
    assert "a right answer has" not in message


@pytest.mark.parametrize(("number", "name"), [(11, "quantize_scales"), (23, "exact_average")])
def test_of_several_results_the_one_that_is_a_multiple_is_named(number, name):
    lesson = find_lesson(number)
    right = getattr(load_solutions(lesson.path), name)
    checker = getattr(load_checks(lesson.path), f"check_{name}")
    _, message = judge_answer(checker, lambda *given: (*right(*given)[:-1], 2 * right(*given)[-1]))
    assert "It is 2.00 times the right answer" in message


def test_of_single_numbers_whole_multiples_are_named():
    def sentence(wrong, right):
        return guess(np.array(wrong), np.array(right))

    assert sentence(6.0, 2.0).endswith("It is 3.00 times the right answer")
    assert sentence(0.002, 2.0).endswith("It is 0.001 times the right answer")
    assert sentence(-2.0, 2.0).endswith("It has the wrong sign everywhere")
    assert sentence(3.0, 2.0) == sentence(2.000001, 2.0) == sentence([5.0], [3.0]) == ""
    assert sentence([3.0, 6.0], [2.0, 4.0]).endswith("It is 1.50 times the right answer")
    assert sentence(0.25, 2.0).endswith("It is 0.12 times the right answer")
    assert sentence(137.53, 1.0) == sentence(12345.0, 7.0) == sentence(1.0, 137.53) == ""
    assert sentence(131.0, 1.0) == sentence(2049.0, 2.0) == ""


def test_what_a_checker_says_of_a_right_answer_is_kept():
    assert judge_answer(lambda answer: "all 84 are equal", print) == ("passed", "all 84 are equal")
    assert judge_answer(lambda answer: None, print) == ("passed", "")


def test_the_first_case_is_tried_before_the_drawn_ones():
    tried = []

    @cases(5, first={"n": 1000}, n=integers(0, 9))
    def check(answer, n):
        tried.append(n)
        close(answer(n), n, case=f"n = {n}")

    check(lambda n: n)
    assert tried[0] == 1000
    assert set(tried[1:]) <= set(range(10))
    with pytest.raises(Wrong, match="n = 1000"):
        check(lambda n: n + 1)


def test_a_first_case_names_what_is_drawn():
    with pytest.raises(ValueError, match="first must name n, got m"):
        cases(first={"m": 1}, n=integers(0, 9))


def test_a_rule_names_the_line_that_breaks_it():
    def walked(x):
        total = 0
        for each in x:
            total += each
        return total

    def borrowed(x):
        return x.sum()

    forbid(borrowed, "mean", loops=True)
    forbid(len, "mean", loops=True)  # has no source of its own
    with pytest.raises(Wrong, match=r"line 3 .*`for each in x:`: the rule here is no loop"):
        forbid(walked, loops=True)
    with pytest.raises(Wrong, match=r"line 2 .*the rule here is no sum"):
        forbid(borrowed, "sum")
