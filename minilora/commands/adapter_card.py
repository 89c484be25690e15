"""What ``train`` writes into the adapter's card: the data and its hash, the settings, the scores.

Nothing that differs between two equal runs: no date, no seconds, no folder.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

LEFT_OUT = ("out", "resume", "progress", "checkpoint_every", "steps", "valid_answers")
SCORES = ("valid_loss", "exact_match")


def card_sections(read: Any, config: Any, history: Any, bits: str | None) -> dict[str, Any]:
    """The sections of a model card; ``read`` is the data set, ``bits`` how the base was packed."""
    from ..hub import data_hash

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
