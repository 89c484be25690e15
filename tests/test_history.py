"""Records and warnings; what a run says is tested with the loop, in test_train.py."""

import json

from minilora.history import History, MetricsLog


def test_a_metrics_log_begins_with_what_the_history_holds_and_grows_a_line_a_record(tmp_path):
    file = tmp_path / "new" / "metrics.jsonl"
    history = History(steps=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], validations=[{"step": 1, "valid_loss": 3.0}])
    log = MetricsLog(file, history)
    log.write({"step": 3, "loss": 0.5})
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert found == [history.steps[0], history.validations[0], history.steps[1], {"step": 3, "loss": 0.5}]
    assert history.losses == [2.0, 1.0]
