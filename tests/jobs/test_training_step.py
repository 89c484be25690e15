"""The step that trains: what it tells while it goes on, and what it gives the loop."""

import json
import os
from types import SimpleNamespace

import pytest
from torch import nn

from minilora.jobs import Spec, training_step
from minilora.jobs.forecast import Limits
from minilora.jobs.training_step import Keeper, Ticks, kept_steps, take_over, train
from minilora.jobs.work import Work
from minilora.training.replay import SelfReplay


class Pulse:
    """What a pulse is told."""

    queue = SimpleNamespace(clock=lambda: 1000.0)

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
            assert (pulse.progress["left"], pulse.progress["finish"]) == (400.0, 1400.0)
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
    with pytest.raises(ValueError, match="that is enough"):
        train(small_work(tmp_path, monkeypatch, replay=table))
    (replay,) = given
    assert (replay and replay.windows) == windows


def small_work(folder, monkeypatch, **tables):
    """The work of training one Linear on one example."""
    monkeypatch.setattr(Work, "base", lambda work: nn.Sequential(nn.Linear(2, 2)))
    spec = {"name": "naval", "data": {"train": "my.jsonl"}}
    spec |= {"method": {"r": 1, "target_modules": ["0"]}, **tables}
    (folder / "prepare").mkdir()
    row = {"instruction": "Hi", "output": "Ahoy!"}
    (folder / "prepare" / "train.jsonl").write_text(json.dumps(row), encoding="utf-8")
    job = SimpleNamespace(id="ftjob-1", spec=json.dumps(spec), step="train", fence=1)
    return Work(job, folder, folder / "hub", Pulse(), Limits())


def test_what_is_said_of_a_training_is_its_last_loss_and_all_its_seconds(tmp_path, monkeypatch):
    steps = [{"seconds": 1.5, "tokens": 7}, {"seconds": 2.0, "tokens": 8}]
    history = SimpleNamespace(losses=[3.0, 2.0, 1.25], steps=steps, interrupted=False)
    history.best_step, history.validations = 2, [{"step": 2, "valid_loss": 0.5}]
    monkeypatch.setattr(training_step, "run_training", lambda *_, **__: history)
    monkeypatch.setattr(training_step, "card_sections", lambda *_: ())
    monkeypatch.setattr(training_step, "save_adapter", lambda _, out, card: out.mkdir(parents=True))
    told = train(small_work(tmp_path, monkeypatch))()["training"]
    assert (told["loss"], told["valid_loss"]) == (1.25, 0.5)
    assert (told["seconds"], told["tokens"]) == (3.5, 15)
    assert (tmp_path / "train" / "adapter").exists()


def test_the_newest_checkpoint_of_another_claim_is_copied(tmp_path):
    own = tmp_path / "train-3"
    assert take_over(tmp_path, own) is None
    assert not own.exists()
    for age, name in enumerate(["train-3", "train-2", "train-1"]):  # one's own is no other's
        file = tmp_path / name / "checkpoint.safetensors"
        file.parent.mkdir()
        file.write_text(name, encoding="utf-8")
        os.utime(file, (1000 - age, 1000 - age))
        for step in ("10", "new") if name != "train-3" else ():
            (file.parent / "steps" / step).mkdir(parents=True)
    assert take_over(tmp_path, own) == own / "checkpoint.safetensors"
    assert (own / "checkpoint.safetensors").read_text(encoding="utf-8") == "train-2"
    assert (tmp_path / "train-2" / "checkpoint.safetensors").exists(), "its owner may go on"
    assert [each.name for each in (own / "steps").iterdir()] == ["10"], "not a half-written one"


@pytest.mark.parametrize(("count", "kept"), [(0, []), (1, [9]), (2, [6, 9]), (5, [3, 6, 9])])
def test_the_last_validations_before_the_end_are_kept(tmp_path, monkeypatch, count, kept):
    monkeypatch.setattr(training_step, "save_adapter", lambda model, out: out.mkdir(parents=True))
    tables = {"data": {"train": "my.jsonl"}, "evaluation": {"checkpoints": count}}
    keeper = Keeper(None, tmp_path, Spec.parse({"name": "naval", **tables}), steps=12)
    for step in (0, 3, 6, 9, 12):
        keeper({"step": step, "loss": 1.0})
        keeper({"step": step, "valid_loss": step / 2})
    found = [(int(folder.name), told["valid_loss"]) for folder, told in kept_steps(tmp_path)]
    assert found == [(step, step / 2) for step in kept]
