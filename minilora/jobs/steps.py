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
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..files import write_json, write_text
from ..formats.save_and_load import load_adapter
from ..hub.database import FILE
from ..hub.lineage import lineage
from ..hub.manifest import data_hash
from ..hub.registry import Version
from ..hub.semver import Semver
from ..hub.store import Hub
from ..lora.injection import trainable_parameters
from ..training.config import TrainConfig
from ..training.examples import Conversation, Document, Task, overlap, question_text, split_examples
from ..training.readers import read_examples, summarize
from ..training.run import checkpoint_file
from .evaluation import evaluate_adapter
from .forecast import check_fit, forecast
from .preflight import training_config
from .tables import JOBS, check_quota
from .training_step import kept_steps, train
from .work import Place, Work


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
        mine = [each for each in there if each.manifest.recipe.get("job") == job.id]
        done = next((each for each in mine if not Semver.parse(each.version).pre), None)
        if done is None:  # else the kill came after the push
            questions = map(question_text, task.train)
            adapter = work.folder / "train" / "adapter"
            done = hub.push(spec.name, adapter, metadata=metadata, examples=questions)
        made = push_steps(work, hub, done, {each.version for each in mine}, metadata)
        file = checkpoint_file(TrainConfig(out=work.folder / "train"))
        assert file is not None
        file.unlink(missing_ok=True)
        return {"version": done.spec} | ({"checkpoints": made} if made else {})

    return place


def push_steps(
    work: Work, hub: Hub, done: Version, there: set[str], metadata: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Push the adapters of earlier steps as pre-releases, ``1.0.0-step.20``, which are meant only
    where they are named; returns what they are, the last first.
    """
    made = []
    for folder, metrics in kept_steps(work.folder / "train"):
        version = f"{done.version}-step.{folder.name}"
        about = {**metadata, "metrics": metrics, "parent": ""}
        try:
            if version not in there:
                hub.push(done.name, folder, version=version, metadata=about)
        except ValueError as error:  # the hub is full: the job is no less done
            work.pulse.say(f"step {folder.name} was not kept: {error}", level="warn")
            continue
        made.append({"version": f"{done.name}@{version}", "step": int(folder.name), **metrics})
    return made[::-1]


STEP = {"prepare": prepare, "train": train, "evaluate": evaluate, "register": register}
