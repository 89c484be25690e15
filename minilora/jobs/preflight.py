"""What can be said of a spec before it is queued: its data are read, its rows counted, and the
ledger is asked. A base is not opened for that, only its tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from ..files import read_json
from ..ledger.shapes import architecture
from ..model.config_json import llama_config
from ..model.pretrained import SHIPPED
from ..model.tokenizer_files import load_tokenizer
from ..training.batches import encode_all
from ..training.config import TrainConfig, settings_for
from ..training.readers import DataSet, read_examples
from .forecast import Limits, check_plan
from .spec import Spec


def check_spec(spec: Spec, limits: Limits) -> DataSet:
    """Raise ``ValueError`` for rows that cannot be learnt from, or a step that will not fit;
    returns what was read.
    """
    data, folder = spec.data, Path(spec.base.folder or SHIPPED)
    read = read_examples(data.train, skip_bad=data.skip_bad)
    if data.valid is not None:
        read_examples(data.valid, skip_bad=data.skip_bad)
    about = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder, llama_config(about, folder).vocab_size)
    config = training_config(spec, architecture(about).parameters)
    rows = encode_all(tokenizer, read.examples, config.max_length)
    check_plan(spec, config, max(len(row.ids) for row in rows), limits)
    return read


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
