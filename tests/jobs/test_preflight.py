"""What can be said of a spec before it is queued."""

import pytest

from minilora.jobs import Spec
from minilora.jobs.forecast import Limits
from minilora.jobs.preflight import Foreseen, check_spec, training_config
from minilora.training.readers import read_examples


def test_the_data_are_read_the_rows_counted_and_the_ledger_asked(spec, naval):
    found = check_spec(Spec.parse(spec, files=True), Limits())
    assert (len(found.read.examples), found.steps) == (40, 4)
    assert found.planned > 5e6
    told = found.as_dict()
    assert told["message"].startswith(f"40 examples, the longest of {found.longest} tokens; 4 st")
    assert " A step needs " in told["message"]
    unplanned = Foreseen(read_examples(naval), 4, 9, None).as_dict()
    assert "A step needs" not in unplanned["message"]
    assert unplanned["planned_bytes"] is None


def test_held_out_rows_are_read_too(spec, naval):
    bad = naval.with_name("valid.jsonl")
    bad.write_text('{"instruction": "Hi"}\n', encoding="utf-8")
    spec["data"]["valid"] = str(bad)
    with pytest.raises(ValueError, match=r"valid\.jsonl, line 1"):
        check_spec(Spec.parse(spec), Limits())


def test_the_settings_of_a_training(spec, tmp_path):
    wanted = Spec.parse(spec)
    trained = training_config(wanted, 3_000_000, out=tmp_path)
    assert (trained.checkpoint_every, trained.progress) == (1, False)
    assert training_config(wanted, 3_000_000).checkpoint_every == 0, "a plan writes none"
    spec["train"] = {"epochs": 2.0, "batch_size": 10}
    epochs = training_config(Spec.parse(spec), 10**9)
    assert (epochs.epochs, epochs.for_examples(40).steps) == (2.0, 8)
    spec["train"] = {}
    assert training_config(Spec.parse(spec), 10**9).steps == 150, "as for any big base"
