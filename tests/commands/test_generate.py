"""``minilora generate --mixed``: many rows, each with its own adapter."""

import json

import pytest

import minilora
from minilora.commands.cli import main

from ..serving.adapters import LOG, alone, make_adapter

ROWS = [
    {"adapter": "one", "instruction": "Status?", "input": LOG},
    {"adapter": None, "instruction": "Status?", "input": LOG},
    {"adapter": {"one": 1.0, "two": 0.5}, "instruction": "Status?", "input": LOG},
    {"instruction": "How much Fuel is left?", "input": LOG},
]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    return [make_adapter(root / str(seed), seed, r=4) for seed in range(2)]


def written(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def test_each_row_gets_its_adapter_and_comes_out_as_a_line(adapters, tmp_path, capsys):
    words = ["generate", "--mixed", written(tmp_path, ROWS), "--max-new-tokens", "8"]
    words += ["--adapter", f"one={adapters[0]}", "--adapter", f"two={adapters[1]}"]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["adapter"] for line in lines] == ["one", None, {"one": 1.0, "two": 0.5}, None]
    assert lines[0]["answer"] == alone(adapters[0], "Status?", max_new_tokens=8)
    assert lines[1]["answer"] == alone(None, "Status?", max_new_tokens=8)
    model = minilora.load_adapter(minilora.load_base(), adapters[0])
    parts = [minilora.low_rank_parts(model)]
    minilora.unload(model)
    parts.append(minilora.low_rank_parts(minilora.load_adapter(model, adapters[1])))
    minilora.swap_adapter(model, minilora.combine(parts, [1.0, 0.5]))
    assert lines[2]["answer"] == model.generate_text("Status?", LOG, max_new_tokens=8)


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        ([], None, "expected one question"),
        (["Hi"], ROWS, "expected one question"),
        (["Hi", "--adapter", "a", "--adapter", "b"], None, "one question takes one --adapter"),
        (["--adapter", "folder"], ROWS, "expected --adapter NAME=FOLDER, got 'folder'"),
        ([], ROWS, "row 0: there is no adapter 'one'"),
        ([], [{"adapter": None}], "line 1: expected an object with 'instruction'"),
        ([], [{"instruction": "Hi", "adaptor": "x"}], "line 1: unknown field 'adaptor'"),
        ([], [5], "expected an object with 'instruction', got 5"),
    ],
)
def test_bad_rows_and_options_are_one_line(words, rows, message, tmp_path, capsys):
    words = [*words, *(["--mixed", written(tmp_path, rows)] if rows else [])]
    assert main(["generate", *words]) == 2
    assert message in capsys.readouterr().err
