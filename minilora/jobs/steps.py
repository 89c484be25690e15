"""The four steps of a job. Each reads what the last one put in place and makes a folder of its own.

    prepare    read, check, split, hash, summarise      -> prepare/ train.jsonl, valid.jsonl
    train      ``minilora.train``, with checkpoints     -> train/   adapter/, metrics.jsonl
    evaluate   the task, what was forgotten, what must stay right -> evaluate/ scores.json
    register   the hub, with lineage                    -> a version

A step works in ``<step>-<fence>/``, which no other claim has, and its folder is renamed to
``<step>/`` in the transaction that ends it (queue.py). So it can be killed anywhere and done again:
what it had made is replaced by the same. Training goes on from the last checkpoint of any earlier
claim, and ends in the same bits as a run that nobody killed.

``register`` pushes under the queue's lock, after a look for a version that names this job: a kill
between the hub's commit and the queue's leaves one version and not two.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..files import write_json, write_text
from ..formats.save_and_load import load_adapter, save_adapter
from ..hub.database import FILE
from ..hub.lineage import card_sections, is_setting, lineage
from ..hub.manifest import data_hash
from ..hub.store import Hub
from ..lora.injection import trainable_parameters
from ..methods.injection import inject
from ..model.pretrained import load_base
from ..training.config import TrainConfig
from ..training.examples import Conversation, Document, Task, overlap, question_text, split_examples
from ..training.loop import train as run_training
from ..training.readers import read_examples, read_replay, summarize
from ..training.replay import SelfReplay
from ..training.run import checkpoint_file
from .evaluation import evaluate_adapter
from .forecast import Limits, check_fit, forecast
from .preflight import training_config
from .pulse import Pulse
from .spec import Spec
from .tables import JOBS, Job, check_quota, read_object

Place = Callable[[], dict[str, Any]]  # puts an output in place and says what it is
POINTS = 100  # of a job's curve in its events
PLACE = ("out", "resume", "progress", "checkpoint_every")  # where and how often, not how


@dataclass
class Work:
    """What a step needs: the job, its folder, the hub to push to, and the pulse to check."""

    job: Job
    folder: Path
    hub: Path
    pulse: Pulse
    limits: Limits

    @cached_property
    def spec(self) -> Spec:
        """What is wanted. Raises ``ValueError`` for a damaged row."""
        return Spec.parse(read_object(self.job.spec), f"the spec of {self.job.id}")

    @property
    def output(self) -> Path:
        """The step's own folder, which no other claim has."""
        return self.folder / f"{self.job.step}-{self.job.fence}"

    def placed(self, **result: Any) -> Place:
        """Renames the step's folder into place, and says what came of it."""
        step, output = self.job.step, self.output

        def place() -> dict[str, Any]:
            final = self.folder / step
            if final.exists():  # a kill came between this rename and the commit
                shutil.rmtree(final)
            os.replace(output, final)
            for left in self.folder.glob(f"{step}-*"):  # of claims that died
                shutil.rmtree(left, ignore_errors=True)
            return result

        return place

    def base(self) -> Any:
        """The base, as the spec wants it."""
        base = self.spec.base
        quantize = "nf4" if base.four_bits else None
        return load_base(base.folder, device=base.device, quantize=quantize)

    def task(self) -> Task:
        """The examples that ``prepare`` wrote down."""
        folder = self.folder / "prepare"
        train, held = (folder / f"{side}.jsonl" for side in ("train", "valid"))
        valid = read_examples(held).examples if held.exists() else ()
        return Task(self.spec.name, read_examples(train).examples, valid)


def prepare(work: Work) -> Place:
    """Read and check the data, hold a part out, write both down; and ask the ledger."""
    spec, pulse = work.spec, work.pulse
    data = spec.data
    read = read_examples(data.train, skip_bad=data.skip_bad)
    if data.valid is None:
        task = split_examples(read, spec.name, data.share, int(spec.train.get("seed", 0)))
    else:
        valid = read_examples(data.valid, skip_bad=data.skip_bad)
        task = Task(spec.name, read.examples, valid.examples)
    if message := overlap(task):
        pulse.say(message, "overlap", level="warn")
    pulse.check()
    for side in ("train", "valid"):
        if examples := getattr(task, side):
            write_text(work.output / f"{side}.jsonl", "".join(map(as_line, examples)))
    model = work.base()
    config = training_config(spec, trainable_parameters(model)[1])
    if model.tokenizer is not None:
        pulse.say(str(summarize(read, model.tokenizer, config.max_length)), "summary")
    pulse.check()
    expected = forecast(model, task, spec, config)
    check_fit(expected, spec, config, work.limits)
    pulse.say(str(expected), "forecast", data=expected.as_dict())
    about = {"train": len(task.train), "valid": len(task.valid), "sha256": data_hash(task.train)}
    placed = work.placed(data=about, forecast=expected.as_dict())

    def place() -> dict[str, Any]:
        with JOBS.reading(pulse.queue.folder) as db:  # under the queue's lock: nobody else's counts
            check_quota(db, work.job.tenant, seconds=expected.seconds)
        return placed()

    return place


def as_line(example: Any) -> str:
    """An example as a line that ``read_examples`` reads as the same.

    >>> from minilora.training.data import Example
    >>> as_line(Example("Hi", "Ahoy!"))
    '{"instruction": "Hi", "output": "Ahoy!", "input": ""}\\n'
    """
    row: dict[str, Any] = asdict(example)
    if isinstance(example, Conversation):
        row = {"messages": example.as_messages()}
        row |= {"tools": json.loads(example.tools)} if example.tools else {}
    elif isinstance(example, Document):
        row = {"text": example.text}
    return json.dumps(row, ensure_ascii=False) + "\n"


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
        ticks = [Ticks(work.pulse, steps, every)]
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
        self.pulse.progress = {"step": step, "steps": self.steps, "left": left, **numbers}
        if step % max(1, self.steps // POINTS) == 0 or step == self.steps:
            message = f"step {step}/{self.steps}: loss {record['loss']:.4f}"
            self.pulse.say(message, f"step {step}", type="metrics", data=numbers)


def numbers_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record."""
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def evaluate(work: Work) -> Place:
    """Judge the base alone, then with the adapter."""
    spec, task = work.spec, work.task()
    model = work.base()
    regression = spec.evaluation.regression
    must_stay = read_examples(regression).examples if regression else ()
    adapter = work.folder / "train" / "adapter"
    scores = evaluate_adapter(
        model,
        lambda: load_adapter(model, adapter),
        {"task": task.valid[: spec.evaluation.examples], "regression": must_stay},
        prose=spec.evaluation.prose,
        check=work.pulse.check,
    )
    write_json(work.output / "scores.json", scores)
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    work.pulse.say(f"scores: {told}", "scores", type="metrics", data=numbers)
    return work.placed(scores=numbers)


def register(work: Work) -> Place:
    """Push the adapter to the tenant's part of the hub, once."""
    spec, job, task = work.spec, work.job, work.task()
    hub = Hub(work.hub, job.request.get("hub_tenant", job.tenant), creator="jobs")
    training = job.result["training"]
    config = TrainConfig(**{"epochs": None, **training["settings"]})
    metrics = {**job.result.get("scores", {}), "loss": training["loss"]}
    more: dict[str, Any] = {"job": job.id, "kind": spec.method.get("kind", "lora")}
    if spec.replay:
        more |= {"replay": spec.replay.share, "replay_from": spec.replay.source}
    more |= job.request.get("recipe", {})
    metadata = lineage(task, config, metrics, job.request.get("parent", ""), **more)

    def place() -> dict[str, Any]:
        there = hub.list(spec.name) if (work.hub / FILE).exists() else []
        for version in there:
            if version.manifest.recipe.get("job") == job.id:  # the kill came after the push
                return {"version": version.spec}
        questions = map(question_text, task.train)
        adapter = work.folder / "train" / "adapter"
        pushed = hub.push(spec.name, adapter, metadata=metadata, examples=questions)
        file = checkpoint_file(TrainConfig(out=work.folder / "train"))
        assert file is not None
        file.unlink(missing_ok=True)
        return {"version": pushed.spec}

    return place


STEP = {"prepare": prepare, "train": train, "evaluate": evaluate, "register": register}
