"""The tasks are what they say, the two sides share nothing, and a bad line of the user's own file is named."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import data
from minilora.training.data import (
    Example,
    is_heldout,
    load_jsonl,
    naval_log,
    polite_log,
    split_examples,
)


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


def test_the_split_is_the_same_for_ever():
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
    ask = [
        [(e.input, e.instruction) for e in build(50, 5).train] for build in (naval_log, polite_log)
    ]
    assert ask[0] == ask[1]


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_task_without_examples_is_refused(sizes):
    with pytest.raises(ValueError, match="at least one example on each side"):
        naval_log(*sizes)


text = st.text(min_size=1).filter(str.strip)


@given(
    st.lists(
        st.builds(Example, instruction=text, output=text, input=st.text()), min_size=1, max_size=5
    ),
    st.booleans(),
)
def test_any_text_survives_a_jsonl_file(tmp_path_factory, examples, escape):
    file = tmp_path_factory.mktemp("data") / "mine.jsonl"
    lines = [
        json.dumps(
            {"instruction": e.instruction, "input": e.input, "output": e.output},
            ensure_ascii=escape,
        )
        for e in examples
    ]
    try:
        file.write_bytes("\n\n".join(lines).encode("utf-8"))
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    assert load_jsonl(file) == tuple(examples)


GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no example: write one JSON object a line"),
        ("\n \n", "holds no example"),
        (f"{GOOD}\n{{broken", r"line 2: no valid JSON .*'\{broken'"),
        (f"{GOOD}\n\n[1]", "line 3: needed an object .* got list"),
        ('{"instruction": "a"}', r"line 1: 'output' missing; found \['instruction'\]"),
        ('{"prompt": "a"}', "line 1: 'instruction' and 'output' missing; .*: rename the fields"),
        (
            '[\n {"instruction": "a", "output": "b"}\n]',
            "line 1: no valid JSON .* write one object a line",
        ),
        ('{"instruction": 3, "output": "b"}', "line 1: 'instruction' must be text, got int"),
        ('{"instruction": "a", "output": null}', "line 1: 'output' must be text, got NoneType"),
        ('{"instruction": "a", "output": " "}', "line 1: 'output' is empty"),
        ('{"instruction": "a", "output": "b", "inptu": "c"}', "line 1: unknown field 'inptu'"),
        (
            '{"instruction": "a", "output": "b", "input": 0}',
            "line 1: 'input' must be text, got int",
        ),
        (
            '{"instruction": "a", "output": "\\ud800"}',
            "line 1: 'output' holds half of a surrogate pair",
        ),
        ('{"instruction": ' + "1" * 5000 + "}", "line 1: no valid JSON"),
        ("[" * 100_000, "line 1: no valid JSON"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path, content, message):
    file = tmp_path / "mine.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_jsonl(file)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"none.jsonl does not exist: needed a file with one JSON object"
    ):
        load_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as UTF-8 text"):
        load_jsonl(tmp_path / "binary")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "bom.jsonl").write_text(GOOD, encoding="utf-8-sig")
    assert load_jsonl(tmp_path / "bom.jsonl") == (Example("a", "b"),)


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_what_python_calls_a_line_end_may_stand_in_a_text_and_input_may_be_null(
    tmp_path, separator
):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        f'{{"instruction": "a{separator}b", "output": "c", "input": null}}', encoding="utf-8"
    )
    assert load_jsonl(file) == (Example(f"a{separator}b", "c"),)


def test_splitting_shuffles_by_the_seed():
    examples = [Example(str(i), "x") for i in range(50)]
    first, same, other = (split_examples(examples, seed=seed) for seed in (0, 0, 1))
    assert first == same != other
    assert first.valid != tuple(examples[:5])


def test_splitting_holds_out_a_tenth_and_loses_nothing():
    examples = [Example(str(i), "x") for i in range(50)]
    task = split_examples(examples)
    assert len(task.valid) == 5
    assert sorted(e.instruction for e in task.train + task.valid) == sorted(
        e.instruction for e in examples
    )
    assert split_examples(examples[:9]).valid == ()
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\)"):
        split_examples(examples, share=1.0)
