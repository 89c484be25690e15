"""``minilora jobs``: from a spec to a version, over a closed terminal, and what it says."""

import os
import re
import signal
import subprocess
import sys

import pytest

from minilora.commands.cli import main
from minilora.jobs import Queue

from ..jobs.conftest import naval

__all__ = ["naval"]  # a fixture

SPEC = """
name = "naval"
[data]
train = "naval.jsonl"
[method]
r = 2
[train]
steps = {steps}
batch_size = 4
validate_every = 0
[evaluation]
examples = 2
prose = false
"""


@pytest.fixture
def at_home(naval, monkeypatch):
    """The folder with the data and a spec of four steps, as the current one."""
    monkeypatch.chdir(naval.parent)
    (naval.parent / "spec.toml").write_text(SPEC.format(steps=4), encoding="utf-8")
    return naval.parent


def said(capsys, *words, status=0):
    assert main(["jobs", *words]) == status
    return capsys.readouterr().out


def test_run_list_show_watch_and_cancel(at_home, capsys):
    told = said(capsys, "run", "spec.toml")
    for line in ("begins with prepare", "40 rows", "steps take about", "step 4/4: loss"):
        assert line in told
    assert "Next: minilora generate --adapter naval@1.0.0 --hub hub" in told
    listed = said(capsys, "list")
    id = re.search(r"ftjob-\w+", listed)[0]
    assert re.search(rf"{id} +naval +succeeded +naval@1.0.0", listed)
    assert '"exact_match"' in said(capsys, "show", id)
    assert "register is done" in said(capsys, "watch", id)
    waiting = said(capsys, "submit", "spec.toml").split()[0]
    assert waiting != id
    assert said(capsys, "submit", "spec.toml").split()[0] == waiting, "the same wish"
    assert said(capsys, "pause", waiting) == f"{waiting} is paused\n"
    assert said(capsys, "resume", waiting) == f"{waiting} is queued\n"
    assert said(capsys, "cancel", waiting) == f"{waiting} is cancelled\n"
    assert "ends after 0 claims" in said(capsys, "worker", "--until-idle")


def test_what_is_refused_is_one_line(at_home, capsys):
    assert main(["jobs", "cancel", "ftjob-0"]) == 2
    assert "there is no queue of jobs in jobs: submit a job first" in capsys.readouterr().err
    (at_home / "spec.toml").write_text("name = 3\n")
    assert main(["jobs", "run", "spec.toml"]) == 2
    error = capsys.readouterr().err
    assert "line 1: name: expected" in error
    assert "data.train is missing" in error
    assert not (at_home / "jobs").exists()


def test_a_step_that_will_not_fit_is_refused_at_the_door(at_home, capsys):
    assert main(["jobs", "submit", "spec.toml", "--memory", "0.009"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"by the ledger a step needs [\d.]+ MB, and there are 9.0 MB; .* would fit", error
    )
    assert "no job of default in jobs" in said(capsys, "list")


def test_jobs_of_other_tenants_are_counted(at_home, capsys):
    said(capsys, "submit", "spec.toml", "--tenant", "acme")
    shown = said(capsys, "list")
    assert "no job of default in jobs\njobs of other tenants: acme (1); see --tenant" in shown
    assert "ftjob-" in said(capsys, "list", "--tenant", "acme")


def test_an_unknown_job_is_one_line(at_home, capsys):
    said(capsys, "submit", "spec.toml")
    for verb in ("cancel", "pause", "resume", "show", "watch"):
        assert main(["jobs", verb, "ftjob-0"]) == 2
        assert "no job 'ftjob-0' in jobs: minilora jobs list" in capsys.readouterr().err


def test_quotas(at_home, capsys):
    assert said(capsys, "quota", "--max-jobs", "0") == "default may have 0 jobs\n"
    assert said(capsys, "quota") == "default may have 0 jobs\n"  # asking changes nothing
    assert main(["jobs", "submit", "spec.toml"]) == 2
    assert "quota of 'default' is 0 unfinished jobs" in capsys.readouterr().err
    assert main(["jobs", "quota", "--lift", "--bytes", "9"]) == 2
    assert "leave the limits out" in capsys.readouterr().err
    assert said(capsys, "quota", "--lift") == "default may have any number of everything\n"
    assert said(capsys, "submit", "spec.toml").startswith("ftjob-")
    said(capsys, "quota", "--max-jobs", "2")
    both = "default may have 2 jobs, 60.0 seconds\n"  # the limit that is not named stays
    assert said(capsys, "quota", "--seconds", "60") == both


def test_of_two_quota_commands_at_once_neither_is_lost(at_home, capsys, monkeypatch):
    said(capsys, "quota", "--max-jobs", "2")
    read = Queue.quota

    def read_just_before_another(queue, tenant):
        limits = read(queue, tenant)
        patched.undo()
        said(capsys, "quota", "--bytes", "9")
        return limits

    with monkeypatch.context() as patched:
        patched.setattr(Queue, "quota", read_just_before_another)
        said(capsys, "quota", "--seconds", "60")
    assert said(capsys, "quota") == "default may have 2 jobs, 60.0 seconds, 9 bytes\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="terminals that hang up")
def test_a_job_survives_a_closed_terminal(at_home):
    """Its output is a pipe that is closed, and the terminal hangs up."""
    (at_home / "spec.toml").write_text(SPEC.format(steps=12), encoding="utf-8")
    command = [sys.executable, "-m", "minilora", "jobs", "run", "spec.toml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in process.stdout:
        if b"prepare is done" in line:
            break
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    (job,) = Queue(at_home / "jobs").jobs()
    assert (job.status, job.result["version"]) == ("succeeded", "naval@1.0.0")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGTERM")
def test_a_worker_that_is_told_to_end_leaves_its_job_to_the_next(at_home):
    (at_home / "spec.toml").write_text(SPEC.format(steps=3000), encoding="utf-8")
    command = [sys.executable, "-m", "minilora", "jobs", "run", "spec.toml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in process.stdout:
        if b"step 30/" in line:
            break
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert b"is queued; the same command goes on with it" in out
    (job,) = Queue(at_home / "jobs").jobs()
    assert (job.status, job.step) == ("queued", "train")
