"""``minilora jobs adapt``: corrections in, a round when one is due, and what it says."""

import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from minilora import data
from minilora.commands import jobs_adapt
from minilora.commands.cli import main
from minilora.commands.jobs_adapt import look_forever
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
    assert main(["jobs", "list"]) == 0
    assert capsys.readouterr().out.count("succeeded") == 2, "its trainings are jobs"


def test_forever_looks_until_it_is_stopped_and_survives_a_look_that_fails(capsys):
    """A loop whose round comes due at the third look; the second fails."""
    stop, looks = threading.Event(), []

    class Loop:
        store = SimpleNamespace(review=lambda: looks.append("review"))
        begin = staticmethod(lambda: SimpleNamespace(spec="naval@1.0.0"))
        watch = settle = staticmethod(lambda: "")

        def due(self):
            looks.append("due")
            if looks.count("due") == 2:
                raise ValueError("ftjob-1 is cancelled")
            return "50 new examples" if looks.count("due") == 3 else ""

        def round(self):
            stop.set()
            return SimpleNamespace(told=["candidate: promote"], word="promote")

    look_forever(Loop(), stop, now=False, pause=0.01)
    assert looks == ["due", "review", "due", "review", "due"]
    printed = capsys.readouterr().out
    assert "this look failed: ftjob-1 is cancelled" in printed
    assert "a round: 50 new examples" in printed


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM")
def test_forever_ends_when_the_process_is_told_to(place, monkeypatch, capsys):
    before, looks = signal.getsignal(signal.SIGTERM), []

    def look(loop, now):
        looks.append(now)
        if len(looks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(jobs_adapt, "look", look)
    monkeypatch.setattr(jobs_adapt, "PAUSE", 0.01)
    try:
        assert main(["jobs", "adapt", "spec.toml", "--forever", "--now"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert looks == [True, False, False], "asked for once, then when one is due"


def test_a_bad_line_is_named_and_nothing_is_taken_in(place, capsys):
    (place / "told.jsonl").write_text('{"source": "ann", "request": "?"}\n', encoding="utf-8")
    assert main(["jobs", "adapt", "spec.toml", "--add", "told.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "line 1" in error
    assert "Nothing was taken in" in error


def test_a_user_who_is_called_as_the_owner_is_refused_with_the_line(place, capsys):
    rows = [{"source": each, "request": "?", "correction": "!"} for each in ("ann", "owner")]
    (place / "told.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["jobs", "adapt", "spec.toml", "--add", "told.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "line 2" in error
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
