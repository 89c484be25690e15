"""Trackers get every number of a record, and the norms of A, B and ΔW when they are due."""

import json
import struct
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from minilora import train
from minilora.lora.layer import lora_layers
from minilora.training.trackers import (
    NORMS_EVERY,
    adapter_norms,
    tensorboard_callback,
    wandb_callback,
)

from .runs import QUICK, TASK, adapted, filled

RECORD = {"step": 3, "loss": 0.5, "grad_norm": None, "sample": {"asked": "?"}, "lr": 1e-3}


def test_tensorboard_gets_every_number_of_a_record(tmp_path, monkeypatch):
    written = []
    board = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar), flush=lambda: None)
    package = SimpleNamespace(SummaryWriter=lambda folder: board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    tensorboard_callback(tmp_path)(RECORD)
    assert written == [("loss", 0.5, 3), ("lr", 1e-3, 3)]
    written.clear()
    write = tensorboard_callback(tmp_path, model := filled())
    write({"step": NORMS_EVERY, "loss": 1.0})
    assert written[1:] == [(*item, NORMS_EVERY) for item in adapter_norms(model).items()]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="TensorBoard is not installed: pip install tensorboard"):
        tensorboard_callback(tmp_path)


def test_the_norms_are_those_of_the_matrices():
    model = filled()
    norms = adapter_norms(model)
    assert len(norms) == 3 * len(list(lora_layers(model)))
    for path, layer in lora_layers(model):
        A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
        wanted = {"A": A, "B": B, "dW": layer.scaling * B @ A}
        for name, matrix in wanted.items():
            singular = torch.linalg.svdvals(matrix)  # ‖M‖² = Σ σ²
            expected = singular.square().sum().sqrt().item()
            assert norms[f"norm_{name}/{path}"] == pytest.approx(expected, rel=1e-5)


def stand_in(monkeypatch):
    """A module in the place of wandb that keeps what it is given."""
    logged, begun = [], []
    run = SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)))
    module = SimpleNamespace(init=lambda **settings: begun.append(settings) or run, Error=OSError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return logged, begun


def test_wandb_gets_curves_and_norms_with_the_validations(monkeypatch):
    logged, begun = stand_in(monkeypatch)
    model = adapted()
    write = wandb_callback(model, project="mine", mode="offline")
    settings = {**QUICK, "validate_every": 2}
    history = train(model, TASK, steps=3, callbacks=[write], **settings)
    assert begun == [{"reinit": "finish_previous", "project": "mine", "mode": "offline"}]
    losses = [(step, numbers["loss"]) for step, numbers in logged if "loss" in numbers]
    assert losses == [(step + 1, loss) for step, loss in enumerate(history.losses)]
    validated = {step: numbers for step, numbers in logged if "valid_loss" in numbers}
    assert [(step, numbers["valid_loss"]) for step, numbers in validated.items()] == [
        (record["step"], record["valid_loss"]) for record in history.validations
    ]
    path = next(lora_layers(model))[0]
    assert validated[0][f"norm_dW/{path}"] == 0 < validated[2][f"norm_dW/{path}"]
    assert not any(name.startswith("norm") for name in logged[1][1])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"Weights & Biases is not installed: pip install wandb"):
        wandb_callback()


def test_a_run_of_wandb_without_a_login_is_one_line(monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**settings):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ValueError, match=r"No API key.*: wandb login, or WANDB_MODE=offline"):
        wandb_callback(project="mine")


def leveldb_records(data):
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB after 7 bytes.

    Each fragment has a header of 7 bytes (checksum, length, kind); kinds 1 and 4 end a record.
    """
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little for a header: padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def records_of(file, message, patience=60):
    """The records of a finished run; ``wandb.finish`` may return before its service has written."""
    for _ in range(10 * patience):
        records = [message.FromString(data) for data in leveldb_records(file.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{file} has no end after {patience} s")


@pytest.mark.slow
def test_wandb_itself_writes_them_down_offline(tmp_path, monkeypatch):
    """Its own file holds the run."""
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_SILENT", "true")
    model = adapted()
    quiet = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off")
    write = wandb_callback(model, project="mine", mode="offline", dir=tmp_path, settings=quiet)
    history = train(model, TASK, steps=2, callbacks=[write], **QUICK | {"validate_every": 2})
    wandb.finish()
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for record in records_of(file, Record):
        if record.HasField("history"):
            items = record.history.item
            named = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
            rows.append(named)
    assert [row["loss"] for row in rows if "loss" in row] == history.losses
    assert [row["_step"] for row in rows] == [0, 1, 2]
    last = adapter_norms(model)
    assert {name: rows[-1][name] for name in last} == pytest.approx(last)
