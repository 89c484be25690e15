"""The step that trains: from the last checkpoint of whoever was at it before, to the same bits."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..files import read_json, write_json
from ..formats.save_and_load import save_adapter
from ..hub.lineage import card_sections, is_setting
from ..lora.injection import trainable_parameters
from ..methods.injection import inject
from ..training.history import Callback
from ..training.loop import train as run_training
from ..training.readers import read_examples, read_replay
from ..training.replay import SelfReplay
from .preflight import training_config
from .pulse import Pulse
from .spec import Spec
from .work import Place, Work

POINTS = 100  # of a job's curve in its events
PLACE = ("out", "resume", "progress", "checkpoint_every")  # where and how often, not how
KEPT, NEW = "steps", "new"  # adapters of earlier steps, and the one that is being written


def train(work: Work) -> Place:
    """Train the adapter, from the last checkpoint of whoever was at it before."""
    spec, task = work.spec, work.task()
    model = work.base()
    work.pulse.check()
    config = training_config(spec, trainable_parameters(model)[1], out=work.output)
    steps = config.for_examples(len(task.train)).steps
    every = config.checkpoint_every or max(1, steps // 20)
    start = take_over(work.folder, work.output)
    config = replace(config, checkpoint_every=every, resume=start is not None)
    torch.manual_seed(config.seed)
    inject(model, spec.config)
    replay = None
    if (old := spec.replay) is not None:
        replay = read_replay(old.source, old.share, skip_bad=spec.data.skip_bad)
        if old.windows is not None and isinstance(replay, SelfReplay):
            replay = replace(replay, windows=old.windows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keeper = Keeper(model, work.output, spec, steps)
        ticks: list[Callback] = [Ticks(work.pulse, steps, every), keeper]
        history = run_training(model, task, config, replay=replay, callbacks=ticks)
    for warning in caught:
        work.pulse.say(str(warning.message), f"warning {warning.message}", level="warn")
    if history.interrupted:  # Ctrl-C: the loop saved its state
        work.pulse.stop.set()
        work.pulse.check()
    read = read_examples(work.folder / "prepare" / "train.jsonl")
    bits = "nf4" if spec.base.four_bits else None
    card = card_sections(read, replace(config, checkpoint_every=0, resume=False), history, bits)
    save_adapter(model, work.output / "adapter", card=card)
    kept = [v for v in history.validations if v["step"] == history.best_step]
    loss = {"valid_loss": kept[-1]["valid_loss"]} if kept else {}
    seconds = sum(record["seconds"] for record in history.steps)
    settings = {k: v for k, v in asdict(config).items() if is_setting(v) and k not in PLACE}
    about = {"steps": steps, "loss": history.losses[-1], "seconds": seconds, **loss}
    about |= {"tokens": sum(record["tokens"] for record in history.steps), "settings": settings}
    return work.placed(training=about)


def take_over(folder: Path, own: Path) -> Path | None:
    """The newest checkpoint of any claim, copied to one's own folder, or None.

    An earlier worker may still be writing to its folder, so nothing is moved out of it.
    """
    files = [file for file in folder.glob("train*/checkpoint.safetensors") if file.parent != own]
    if not files:
        return None
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    own.mkdir(parents=True, exist_ok=True)
    copy = own / newest.name
    shutil.copyfile(newest, copy)
    if (newest.parent / KEPT).exists():
        shutil.copytree(newest.parent / KEPT, own / KEPT, ignore=lambda *_: [NEW])
    return copy


class Ticks:
    """The loop's callback: is the work still wanted; and how far is it?"""

    def __init__(self, pulse: Pulse, steps: int, every: int):
        self.pulse, self.steps, self.every = pulse, steps, every
        self.first: int | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """One step or one validation is done. Raises ``Stopped``."""
        self.pulse.check()
        step, numbers = record["step"], numbers_of(record)
        if "valid_loss" in record:
            mark, message = (
                f"valid {step}",
                f"step {step}: held-out loss {record['valid_loss']:.4f}",
            )
            self.pulse.say(message, mark, type="metrics", data=numbers)
            return
        self.first = step if self.first is None else self.first
        # the checkpoint of a step is written after its callbacks, so the last one's is there
        if (step - 1) % self.every == 0 and step > self.first:
            self.pulse.kept = True
        left = record["seconds"] * (self.steps - step)
        finish = self.pulse.queue.clock() + left
        told = {"step": step, "steps": self.steps, "left": left, "finish": finish}
        self.pulse.progress = {**told, **numbers}
        if step % max(1, self.steps // POINTS) == 0 or step == self.steps:
            message = f"step {step}/{self.steps}: loss {record['loss']:.4f}"
            self.pulse.say(message, f"step {step}", type="metrics", data=numbers)


def numbers_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record."""
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


class Keeper:
    """The loop's callback: keeps the adapter of the last validations before the end, so many as
    ``evaluation.checkpoints`` says.
    """

    def __init__(self, model: Any, folder: Path, spec: Spec, steps: int):
        self.model, self.folder, self.steps = model, folder, steps
        self.count = spec.evaluation.checkpoints

    def __call__(self, record: Mapping[str, Any]) -> None:
        """After a validation: save, and let go of the oldest."""
        step = record["step"]
        if self.count == 0 or "valid_loss" not in record or not 0 < step < self.steps:
            return
        place, new = self.folder / KEPT / str(step), self.folder / KEPT / NEW
        if place.exists():  # done again after a kill: the same
            return
        save_adapter(self.model, new)
        write_json(new / "metrics.json", {"valid_loss": record["valid_loss"]})
        os.replace(new, place)
        for old, _ in kept_steps(self.folder)[: -self.count]:
            shutil.rmtree(old)


def kept_steps(folder: Path) -> list[tuple[Path, dict[str, float]]]:
    """The adapters of earlier steps in a training's folder, with their metrics, in order."""
    folders = [each for each in (folder / KEPT).glob("*") if each.name.isdecimal()]
    ordered = sorted(folders, key=lambda each: int(each.name))
    return [(each, read_json(each / "metrics.json")) for each in ordered]
