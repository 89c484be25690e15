"""Any text survives a file of examples, a bad line is named, and a split loses nothing."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.training.examples import Example, load_jsonl, split_examples

text = st.text(min_size=1).filter(str.strip)


@given(
    st.lists(
        st.builds(Example, instruction=text, output=text, input=st.text()), min_size=1, max_size=5
    ),
    st.booleans(),
)
def test_any_text_survives_a_jsonl_file(tmp_path_factory, examples, escape):
    file = tmp_path_factory.mktemp("data") / "mine.jsonl"
    lines = [json.dumps(asdict(example), ensure_ascii=escape) for example in examples]
    try:
        file.write_bytes("\n\n".join(lines).encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate is not text
        return
    assert load_jsonl(file) == tuple(examples)


GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no example: write one JSON object a line"),
        ("\n \n", "holds no example"),
        (f"{GOOD}\n{{broken", r"line 2: not valid JSON .*'\{broken'"),
        (f"{GOOD}\n\n[1]", "line 3: expected an object .* got list"),
        ('{"instruction": "a"}', r"line 1: 'output' missing, got \['instruction'\]"),
        ('{"prompt": "a"}', "line 1: 'instruction' and 'output' missing, .*: rename the fields"),
        (
            '[\n {"instruction": "a", "output": "b"}\n]',
            "line 1: not valid JSON .* write one object a line",
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
        ('{"instruction": ' + "1" * 5000 + "}", "line 1: not valid JSON"),
        ("[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path, content, message):
    file = tmp_path / "mine.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_jsonl(file)


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.jsonl does not exist: expected one JSON object"):
        load_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as UTF-8 text"):
        load_jsonl(tmp_path / "binary")


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    (tmp_path / "bom.jsonl").write_text(GOOD, encoding="utf-8-sig")
    assert load_jsonl(tmp_path / "bom.jsonl") == (Example("a", "b"),)


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_what_python_calls_a_line_end_may_stand_in_a_text_and_input_may_be_null(
    tmp_path, separator
):
    file = tmp_path / "mine.jsonl"
    line = f'{{"instruction": "a{separator}b", "output": "c", "input": null}}'
    file.write_text(line, encoding="utf-8")
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
    assert sorted(task.train + task.valid, key=lambda e: int(e.instruction)) == examples
    assert split_examples(examples[:9]).valid == ()
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\)"):
        split_examples(examples, share=1.0)
