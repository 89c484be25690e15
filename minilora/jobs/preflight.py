"""What can be said of a spec before it is queued: its data are read, its rows counted, and the
ledger is asked. A base is not opened for that, only its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..ledger.shapes import architecture
from ..model.config_json import llama_config
from ..model.pretrained import SHIPPED
from ..model.tokenizer_files import load_tokenizer
from ..text import size_text
from ..training.batches import encode_all
from ..training.config import TrainConfig, settings_for
from ..training.readers import DataSet, read_examples
from .forecast import Limits, check_plan
from .spec import Spec


@dataclass(frozen=True)
class Foreseen:
    """A spec's data as they were read, its steps, its longest row, the ledger's bytes a step."""

    read: DataSet
    steps: int
    longest: int
    planned: int | None

    def as_dict(self) -> dict[str, Any]:
        """The numbers, and a sentence that says them."""
        count = len(self.read.examples)
        planned = "" if self.planned is None else size_text(self.planned)
        memory = f" A step needs {planned}, by the ledger." if planned else ""
        message = (
            f"{count:,} examples, the longest of {self.longest} tokens; {self.steps:,} steps."
            f"{memory} How long it takes is measured when it begins."
        )
        numbers = {"examples": count, "longest": self.longest, "steps": self.steps}
        return {"message": message, **numbers, "planned_bytes": self.planned}


def check_spec(spec: Spec, limits: Limits) -> Foreseen:
    """Raise ``ValueError`` for rows that cannot be learnt from, or a step that will not fit;
    returns what can be foreseen.
    """
    data, folder = spec.data, Path(spec.base.folder or SHIPPED)
    read = read_examples(data.train, skip_bad=data.skip_bad)
    if data.valid is not None:
        read_examples(data.valid, skip_bad=data.skip_bad)
    about = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder, llama_config(about, folder).vocab_size)
    config = training_config(spec, architecture(about).parameters)
    rows = encode_all(tokenizer, read.examples, config.max_length)
    longest = max(len(row.ids) for row in rows)
    planned = check_plan(spec, config, longest, limits)
    return Foreseen(read, config.for_examples(len(rows)).steps, longest, planned)


def training_config(spec: Spec, parameters: int, **more: object) -> TrainConfig:
    """The settings of a spec's training, for a base of so many parameters.

    >>> spec = Spec.parse({"name": "naval", "data": {"train": "my.jsonl"}, "train": {"steps": 9}})
    >>> training_config(spec, 10**9).steps, training_config(spec, 10**9).lr
    (9, 0.0002)
    """
    given, sizes = dict(spec.train), settings_for(parameters)
    if "epochs" in given:
        del sizes["steps"]
    if "out" not in more:  # a plan writes no checkpoints
        given.pop("checkpoint_every", None)
    return TrainConfig(**{**sizes, **given, "progress": False, **more})
