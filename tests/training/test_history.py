"""Records in memory and on disk, and the warnings and messages that follow from them."""

import json
import math

import pytest

from minilora import TrainConfig
from minilora.training.history import History, MetricsLog, diverged, overfitting


def test_a_metrics_log_begins_with_what_the_history_holds_and_grows_a_line_a_record(tmp_path):
    file = tmp_path / "new" / "metrics.jsonl"
    first, second = {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}
    validation, third = {"step": 1, "valid_loss": 3.0}, {"step": 3, "loss": 0.5}
    history = History(steps=[first, second], validations=[validation])
    log = MetricsLog(file, history)
    log.write(third)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [first, validation, second, third]
    assert history.losses == [2.0, 1.0]


def validated(*losses):
    """A history with these validation losses, of which the first is the best."""
    records = [{"step": step, "valid_loss": loss} for step, loss in enumerate(losses)]
    return History(validations=records, best_step=0)


@pytest.mark.parametrize(("last", "warned"), [(1.049, False), (1.051, True)])
def test_overfitting_begins_five_percent_above_the_best_loss(last, warned):
    assert bool(overfitting(validated(1.0, 1.01, 1.02, last))) == warned


def test_overfitting_needs_three_rises_and_five_percent():
    assert overfitting(validated(1.0, 1.1, 1.2)) is None
    assert overfitting(validated(1.0, 1.01, 1.02, 1.03)) is None
    assert overfitting(validated(1.0, 1.3, 1.2, 1.4)) is None
    message = overfitting(validated(1.0, 1.1, 1.2, 1.3))
    assert "rose 3 times running, from 1.0000 at step 0 to 1.3000" in message


def failure(losses, loss=math.nan, norm=1.0, **settings):
    """The message about step 4, after these losses."""
    history = History(steps=[{"loss": value} for value in losses])
    return diverged(3, loss, norm, history, TrainConfig(lr=0.125, **settings))


def test_a_failure_is_told_with_its_likely_cause():
    rising = failure([1.0, 0.9, 5.0])
    assert rising.startswith("step 4: the loss is nan. Last losses: [1.0, 0.9, 5.0]; the loss had")
    assert rising.endswith("lr=0.125 is probably too high. The weights of step 3 are kept")
    sudden = failure([1.0, 0.9, 0.8])
    assert "look at the examples of this step, then try a smaller lr than 0.125" in sudden
    assert "bf16" not in sudden
    assert failure([1.0], bf16=True).count("bf16 may overflow") == 1
    assert "it is the first step" in failure([])
    assert "the gradient norm is inf" in failure([1.0], loss=1.0, norm=math.inf)
    assert "Last losses: [2, 3, 4, 5, 6]" in failure([1, 2, 3, 4, 5, 6])
