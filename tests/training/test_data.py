"""The tasks are what they say, and their two sides share nothing."""

import re

import pytest

from minilora import data
from minilora.training.data import is_heldout, naval_log, polite_log


def readings_in(log):
    return re.findall(r"(\w+) (\d+|[a-z]+)%?(?:,|\.$)", log.removeprefix("Log: "))


@pytest.mark.parametrize("build", [naval_log, polite_log])
def test_train_and_held_out_share_no_log_and_nothing_stands_twice(build):
    task = build(3000, 600, seed=3)
    train, valid = {e.input for e in task.train}, {e.input for e in task.valid}
    assert (len(task.train), len(task.valid)) == (3000, 600)
    assert not train & valid
    for side in (task.train, task.valid):
        assert len({(e.input, e.instruction) for e in side}) == len(side)


def test_the_split_is_the_same_forever():
    """The shipped base was trained on one side of it."""
    held = [n for n in range(101) if is_heldout(f"Log: Hull {n}%.")]
    assert held == [0, 12, 18, 29, 32, 33, 35, 38, 42, 58, 60, 63, 84, 87, 90]


def test_tasks_repeat_with_a_seed_and_differ_without():
    assert naval_log(20, 5, seed=1) == naval_log(20, 5, seed=1)
    assert naval_log(20, 5, seed=1).train != naval_log(20, 5, seed=2).train


def test_every_reading_of_a_naval_answer_stands_in_its_log_and_there_is_variety():
    task = naval_log(2000, 1)
    for e in task.train:
        pairs = {(name, value) for name, value in re.findall(r"(\w+) (\d+)%\.", e.output)}
        assert pairs <= set(readings_in(e.input))
        orders = [name for name, order in data.MANOEUVRES.items() if order in e.output]
        assert all(("Engines", order) in readings_in(e.input) for order in orders)
        assert pairs or orders
        assert 1 <= len(readings_in(e.input)) <= 4
    assert len({e.output for e in task.train}) > 1200
    assert {len(readings_in(e.input)) for e in task.train} == {1, 2, 3, 4}
    assert sum("All stop." in e.output for e in task.train) > 20


def test_engines_never_stand_alone_and_several_systems_are_asked_for_in_any_order():
    train = naval_log(2000, 1).train
    assert not any("Engines" in e.input and len(readings_in(e.input)) == 1 for e in train)
    in_order = []
    for e in train:
        asked = re.findall(r"the ([A-Z]\w+)", e.instruction)
        if len(asked) > 1:
            logged = [name for name, _ in readings_in(e.input) if name in asked]
            assert sorted(asked) == sorted(logged)
            in_order.append(asked == logged)
    assert len(in_order) > 20
    assert set(in_order) == {True, False}


def test_polite_and_naval_show_the_same_logs_and_ask_the_same():
    naval, polite = (build(50, 5).train for build in (naval_log, polite_log))
    assert [(e.input, e.instruction) for e in naval] == [(e.input, e.instruction) for e in polite]


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_task_without_examples_is_refused(sizes):
    with pytest.raises(ValueError, match="at least one example on each side"):
        naval_log(*sizes)
