"""Records and warnings; what a run says is tested with the loop, in training/test_loop.py."""

import json
import sys
from types import SimpleNamespace

import pytest

from minilora.training.history import History, MetricsLog, overfitting, tensorboard_callback


def test_a_metrics_log_begins_with_what_the_history_holds_and_grows_a_line_a_record(tmp_path):
    file = tmp_path / "new" / "metrics.jsonl"
    history = History(
        steps=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}],
        validations=[{"step": 1, "valid_loss": 3.0}],
    )
    log = MetricsLog(file, history)
    log.write({"step": 3, "loss": 0.5})
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert found == [
        history.steps[0],
        history.validations[0],
        history.steps[1],
        {"step": 3, "loss": 0.5},
    ]
    assert history.losses == [2.0, 1.0]


def test_tensorboard_gets_every_number_of_a_record(tmp_path, monkeypatch):
    written = []
    board = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar), flush=lambda: None)
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda folder: board)
    )
    tensorboard_callback(tmp_path)({"step": 3, "loss": 0.5, "sample": {"asked": "?"}, "lr": 1e-3})
    assert written == [("loss", 0.5, 3), ("lr", 1e-3, 3)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install"):
        tensorboard_callback(tmp_path)


@pytest.mark.parametrize(("last", "warned"), [(1.049, False), (1.051, True)])
def test_overfitting_begins_five_percent_above_the_best_loss(last, warned):
    losses = [
        {"step": step, "valid_loss": loss} for step, loss in enumerate([1.0, 1.01, 1.02, last])
    ]
    assert bool(overfitting(History(validations=losses, best_step=0))) == warned
