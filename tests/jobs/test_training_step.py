"""The step that trains: what it tells while it goes on, and what it gives the loop."""

import json
from types import SimpleNamespace

import pytest
from torch import nn

from minilora.jobs import training_step
from minilora.jobs.forecast import Limits
from minilora.jobs.training_step import Ticks, train
from minilora.jobs.work import Work
from minilora.training.replay import SelfReplay


class Pulse:
    """What a pulse is told."""

    def __init__(self):
        self.kept, self.progress, self.said = False, {}, []

    def check(self):
        pass

    def say(self, message, mark=None, **more):
        self.said.append(message)


def test_progress_is_told_a_hundred_times_and_at_the_end():
    pulse = Pulse()
    ticks = Ticks(pulse, steps=250, every=10)
    for step in range(1, 251):
        ticks({"step": step, "seconds": 2.0, "loss": 1.0})
        if step == 50:
            assert pulse.progress["left"] == 400.0
    ticks({"step": 250, "valid_loss": 0.5})
    assert pulse.said[0] == "step 2/250: loss 1.0000"
    assert pulse.said[-2:] == ["step 250/250: loss 1.0000", "step 250: held-out loss 0.5000"]
    assert len(pulse.said) == 126
    few = Pulse()
    for step in range(1, 4):
        Ticks(few, steps=3, every=1)({"step": step, "seconds": 2.0, "loss": 1.0})
    assert len(few.said) == 3


@pytest.mark.parametrize("first", [1, 8, 11])
def test_a_checkpoint_counts_in_the_step_after_it(first):
    """It is written after a step's callbacks; a resumed run has written none in its first step."""
    pulse, kept = Pulse(), []
    ticks = Ticks(pulse, steps=40, every=10)
    for step in range(first, 23):
        pulse.kept = False
        ticks({"step": step, "seconds": 2.0, "loss": 1.0})
        kept += [step] * pulse.kept
    assert kept == [step for step in (11, 21) if step > first]


@pytest.mark.parametrize(
    ("table", "windows"),
    [({"share": 0.2, "windows": 3}, 3), ({"share": 0.2}, SelfReplay(0.2).windows), ({}, None)],
    ids=["windows", "default", "none"],
)
def test_the_replay_of_a_spec(tmp_path, monkeypatch, table, windows):
    given = []

    def run(model, task, config, replay, callbacks):
        given.append(replay)
        raise ValueError("that is enough")

    monkeypatch.setattr(training_step, "run_training", run)
    monkeypatch.setattr(Work, "base", lambda work: nn.Sequential(nn.Linear(2, 2)))
    spec = {"name": "naval", "data": {"train": "my.jsonl"}}
    spec |= {"method": {"r": 1, "target_modules": ["0"]}, "replay": table}
    (tmp_path / "prepare").mkdir()
    row = {"instruction": "Hi", "output": "Ahoy!"}
    (tmp_path / "prepare" / "train.jsonl").write_text(json.dumps(row), encoding="utf-8")
    job = SimpleNamespace(id="ftjob-1", spec=json.dumps(spec), step="train", fence=1)
    with pytest.raises(ValueError, match="that is enough"):
        train(Work(job, tmp_path, tmp_path / "hub", Pulse(), Limits()))
    (replay,) = given
    assert (replay and replay.windows) == windows
