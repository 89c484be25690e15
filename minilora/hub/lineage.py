"""Where a trained adapter comes from, for its card and for its version in the hub: the data and its
hash, the settings, the scores.

In the card stands nothing that differs between two equal runs: no date, no seconds, no folder.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from .manifest import data_hash

LEFT_OUT = ("out", "resume", "progress", "checkpoint_every", "steps", "valid_answers")
SCORES = ("valid_loss", "exact_match")


def card_sections(read: Any, config: Any, history: Any, bits: str | None) -> dict[str, Any]:
    """The sections of a model card; ``read`` is the data set, ``bits`` how the base was packed."""
    data = {"examples": len(read), "sha256": data_hash(read)}
    data |= {"forms": dict(read.forms)} if read.forms else {}
    standard = {field.name: field.default for field in fields(config)}
    changed = {name: value for name, value in asdict(config).items() if value != standard[name]}
    training = {"steps": len(history.steps), "lr": config.lr, "seed": config.seed}
    training |= {name: value for name, value in changed.items() if name not in LEFT_OUT}
    if bits is not None:
        training["base in"] = bits
    return {"Data": data, "Training": training, "Scores": scores(history)}


def scores(history: Any) -> dict[str, Any]:
    """The last validation, or that of the state which was kept."""
    records = [v for v in history.validations if v["step"] == history.best_step]
    record = (records or history.validations or [{}])[-1]
    named = {f"held-out {name}": record[name] for name in SCORES if name in record}
    return {**named, "at step": record["step"]} if named else {}


def lineage(
    task: Any, config: Any, metrics: dict[str, float], parent: str = "", **more: Any
) -> dict[str, Any]:
    """The ``metadata`` of a push: task, data hash, scores, seed, the settings and ``more`` of the
    recipe, and the version that it goes on from.
    """
    settings = {key: value for key, value in asdict(config).items() if key != "out"}
    recipe = {key: value for key, value in settings.items() if is_setting(value)} | more
    metadata = {"task": task.name, "data_sha": data_hash(task.train), "metrics": metrics}
    metadata |= {"seed": config.seed, "recipe": recipe}
    return metadata | ({"parent": parent} if parent else {})


def is_setting(value: Any) -> bool:
    """Whether a field of a ``TrainConfig`` says how it was trained; None does not."""
    return isinstance(value, bool | int | float | str)
