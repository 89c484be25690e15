"""A small task, a spec of it that takes a second or two, and a queue."""

import json

import pytest

import minilora
from minilora.jobs import Queue


@pytest.fixture
def naval(tmp_path):
    """A file of 40 examples of naval code."""
    task = minilora.data.naval_log(40, 1)
    rows = [
        {"instruction": e.instruction, "input": e.input, "output": e.output} for e in task.train
    ]
    file = tmp_path / "naval.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def spec(naval):
    """As ``Spec.as_dict`` gives it."""
    return {
        "name": "naval",
        "data": {"train": str(naval)},
        "method": {"r": 2},
        "train": {"steps": 4, "batch_size": 4, "checkpoint_every": 1, "validate_every": 2},
        "evaluation": {"examples": 2, "prose": False},
    }


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "jobs", lease=5.0)
