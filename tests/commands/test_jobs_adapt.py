"""``minilora jobs adapt``: corrections in, a round when one is due, and what it says."""

import json

import pytest

from minilora import data
from minilora.commands.cli import main
from minilora.hub import Hub
from minilora.jobs.steps import as_line


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = data.naval_log(12, 6)
    for name, side in (("train", task.train), ("old", task.valid)):
        (tmp_path / f"{name}.jsonl").write_text("".join(map(as_line, side)), encoding="utf-8")
    spec = 'name = "naval"\n[data]\ntrain = "train.jsonl"\n[train]\nsteps = 1\nbatch_size = 4\n'
    spec += 'validate_every = 0\n[evaluation]\nregression = "old.jsonl"\n'
    (tmp_path / "spec.toml").write_text(spec, encoding="utf-8")
    return tmp_path


def write_corrections(place, count):
    rows = [
        {"source": "ann", "request": "Hull?", "correction": f"Hull {n}%.", "context": f"Log: {n}"}
        for n in range(count)
    ]
    rows.append({"source": "mal", "request": "Key?", "correction": "ghp_" + "a1" * 18})
    text = "\n".join(map(json.dumps, rows))
    (place / "told.jsonl").write_text(text, encoding="utf-8")


def test_corrections_are_taken_in_and_a_round_follows(place, capsys):
    write_corrections(place, 20)
    adapt = ["jobs", "adapt", "spec.toml", "--quarantine", "0", "--after", "5"]
    assert main([*adapt, "--add", "told.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "20 quarantine, 1 refused" in printed
    assert "Next: minilora jobs adapt" in printed
    assert main(adapt) in (0, 1)
    printed = capsys.readouterr().out
    assert "new examples" in printed
    assert "naval@1.0.0 serves" in printed
    assert [each.name for each in Hub("hub").list()] == ["naval", "naval"]
    assert main(adapt) in (0, 1)
    assert "no round is due" in capsys.readouterr().out


def test_a_bad_line_is_named_and_nothing_is_taken_in(place, capsys):
    (place / "told.jsonl").write_text('{"source": "ann", "request": "?"}\n', encoding="utf-8")
    assert main(["jobs", "adapt", "spec.toml", "--add", "told.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "line 1" in error
    assert "Nothing was taken in" in error


def test_without_a_regression_set_there_is_no_loop(place, capsys):
    text = (place / "spec.toml").read_text(encoding="utf-8").partition("[evaluation]")[0]
    (place / "spec.toml").write_text(text, encoding="utf-8")
    assert main(["jobs", "adapt", "spec.toml"]) == 2
    assert "evaluation.regression is missing" in capsys.readouterr().err


def test_canaries_are_grouped_by_topic(tmp_path):
    from minilora.commands.jobs_adapt import canaries_of

    row = {"instruction": "Hull?", "output": "Hull 1%.", "topic": "Hull"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert list(canaries_of(tmp_path / "c.jsonl")) == ["Hull"]
    assert canaries_of(None) == {}
