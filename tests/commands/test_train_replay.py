"""``minilora train --replay``: what is replayed, the shares that it prints, and likely mistakes."""

import json

import pytest

from minilora import Examples, Prose, SelfReplay
from minilora.commands.cli import main, parser_of
from minilora.commands.train_options import replay_of
from minilora.training.data import naval_log
from minilora.training.examples import Example


def options(*words):
    """The options of ``minilora train`` with these words."""
    return parser_of("train").parse_args(["--data=mine.jsonl", "--out=mine", *words])


def rows(file, examples):
    """A file of examples."""
    lines = [
        json.dumps({"instruction": e.instruction, "input": e.input, "output": e.output})
        for e in examples
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_without_a_share_nothing_is_replayed():
    assert replay_of(options()) is None


def test_by_default_the_base_writes_what_is_replayed():
    assert replay_of(options("--replay=0.25")) == SelfReplay(0.25)
    assert replay_of(options("--replay=0.5", "--replay-from=self")) == SelfReplay(0.5)


def test_an_adapter_that_is_trained_on_writes_with_what_it_knows():
    replay = replay_of(options("--replay=0.25", "--adapter=mine/adapter"))
    assert replay == SelfReplay(0.25, teacher="start")


def test_a_data_file_gives_examples_and_a_text_file_prose(tmp_path):
    old = rows(tmp_path / "old.jsonl", [Example("Hi", "Ahoy!")])
    replay = replay_of(options("--replay=0.1", "--replay-from", str(old)))
    assert replay == Examples((Example("Hi", "Ahoy!"),), 0.1)
    text = tmp_path / "old.txt"
    text.write_text("To the Congress.", encoding="utf-8")
    replay = replay_of(options("--replay=0.1", "--replay-from", str(text)))
    assert replay == Prose(["To the Congress."], 0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replay=1.5"], "share must be above 0 and below 1, a share of all rows, got 1.5"),
        (["--replay-from=old.jsonl"], "needs a share of the rows: --replay 0.25"),
        (["--replay=0.1", "--replay-from=missing.txt"], "missing.txt does not exist"),
        (["--replay=0.1", "--replay-from=missing.jsonl"], "missing.jsonl"),
    ],
    ids=["share", "no share", "no text", "no file"],
)
def test_mistakes_are_told_before_anything_is_written(words, said, tmp_path, capsys):
    data = rows(tmp_path / "mine.jsonl", naval_log(4, 1).train)
    out = tmp_path / "out"
    assert main(["train", "--data", str(data), "--out", str(out), *words]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_run_prints_the_share_in_label_tokens_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SelfReplay.__init__, "__defaults__", (0.25, 6, 12, None, "base"))
    data = rows(tmp_path / "mine.jsonl", naval_log(12, 1).train)
    command = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--replay", "0.3"]
    assert main([*command, "--steps", "2", "--batch", "3"]) == 0
    printed = capsys.readouterr().err
    assert "replay: 30% of the rows are windows (6 of them), with" in printed
    assert "of the label tokens" in printed
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if "loss" in record]
    assert all(record["windows_loss"] >= 0 for record in steps)
