"""``minilora jobs adapt``: corrections in, a round when one is due, and what it says."""

import contextlib
import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from minilora import data
from minilora.commands import jobs_adapt
from minilora.commands.cli import main
from minilora.commands.jobs_adapt import look_forever
from minilora.hub import Hub
from minilora.jobs import Queue
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
    assert main(adapt) == 1, "a step on a dozen examples: no set is large enough to tell"
    printed = capsys.readouterr().out
    assert "new examples" in printed
    assert "naval@1.1.0: reject, regression: fail" in printed
    assert "naval@1.0.0 serves" in printed
    assert [each.name for each in Hub("hub").list()] == ["naval", "naval"]
    assert main(adapt) == 0
    assert "no round is due" in capsys.readouterr().out
    assert main(["jobs", "list"]) == 0
    assert capsys.readouterr().out.count("succeeded") == 2, "its trainings are jobs"


def test_live_pairs_are_of_what_the_server_serves(place, capsys):
    command = ["jobs", "adapt", "spec.toml", "--state", "server", "--tenant", "acme"]
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert "a server serves the hub's adapters of tenant 'default'" in printed
    assert "name whose users with --feedback-of" in printed
    assert not (place / "server").exists(), "nothing was written"


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


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_forever_ends_in_the_middle_of_a_training_and_goes_on_from_there(place, number, capsys):
    """A loop spends its time in trainings: whoever has to kill it with -9 waits for a lease."""
    text = (place / "spec.toml").read_text(encoding="utf-8")
    text = text.replace("steps = 1\n", "steps = 100000\ncheckpoint_every = 1\n")
    (place / "spec.toml").write_text(text, encoding="utf-8")
    queue, before = Queue(place / "jobs"), signal.getsignal(signal.SIGTERM)

    def tell():
        until, step = time.monotonic() + 60, 0
        while step < 2 and time.monotonic() < until:
            time.sleep(0.1)
            with contextlib.suppress(OSError):  # the queue is just being made
                step = max((job.progress.get("step", 0) for job in queue.jobs()), default=0)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        assert main(["jobs", "adapt", "spec.toml", "--forever"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
        thread.join()
    assert "stopped: ftjob-" in capsys.readouterr().out
    (job,) = queue.jobs()
    assert (job.status, job.step) == ("queued", "train")
    assert list(place.glob("jobs/jobs/*/train-*/checkpoint.safetensors"))


def test_a_reserve_takes_questions_alone_and_names_what_is_none(place, capsys):
    rows = [{"instruction": "Hull?", "output": "Hull 9%."}, {"text": "Once upon a time."}]
    (place / "exam.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["jobs", "adapt", "spec.toml", "--reserve", "exam.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "line 2: the exam takes a question and its answer, got a document" in error
    assert len(jobs_adapt.reserve_of(place / "train.jsonl")) == 12


def test_the_feedback_and_the_users_of_a_server_are_the_loops(place, monkeypatch):
    """``serve --feedback heard --state server`` beside ``jobs adapt`` with the same two folders."""
    seen = []
    monkeypatch.setattr(jobs_adapt, "look", lambda loop, now: seen.append(loop) or "")
    heard = ["--feedback", "heard", "--feedback-of", "acme"]
    assert main(["jobs", "adapt", "spec.toml", *heard, "--state", "server", "--share", "0.1"]) == 0
    assert main(["jobs", "adapt", "spec.toml"]) == 0
    with_users, without = seen
    assert (with_users.store.tenant, with_users.hub.tenant) == ("acme", "default")
    assert with_users.live.share == 0.1
    assert with_users.live.experiments.folder.name == "server"
    assert without.live is None


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
