"""What a job will need: by the ledger, by three steps, and which changes would do."""

import os
from types import SimpleNamespace

import pytest
import torch

from minilora.jobs import Spec, forecast
from minilora.jobs.forecast import Forecast, Limits, cheaper, check_fit, check_plan, planned_bytes
from minilora.jobs.preflight import training_config
from minilora.training.examples import Example, Task


def spec_of(**tables):
    train = {"steps": 100, "batch_size": 4}
    return Spec.parse({"name": "naval", "data": {"train": "my.jsonl"}, "train": train, **tables})


def test_the_memory_of_a_machine_is_all_it_has_and_of_a_card_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000, 8_000))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 500, "SC_PAGE_SIZE": 4096}.get)
    assert Limits().bytes("cuda:1") == 3_000
    assert Limits().bytes("cpu") == 500 * 4096
    assert Limits(memory=7).bytes("cuda:1") == Limits(memory=7).bytes("cpu") == 7


def test_a_forecast_in_words():
    told = str(Forecast(2_000_000, 3_000_000, 0.5, 1000, 20))
    assert told == (
        "a step holds 3.0 MB, measured (the ledger plans 2.0 MB); 1,000 steps take about 8.33 min"
    )
    assert "ledger" not in str(Forecast(None, 3_000_000, 0.5, 1000, 20))


def test_the_second_of_three_steps_is_measured_and_the_third_is_timed(monkeypatch):
    seen = []

    def train(model, task, trial):
        seen.append((trial.steps, trial.measure_memory, trial.validate_every, task.valid))
        memory = {"resident": {}, "peaks": {}, "at_peak": {"weights": 5, "gradients": 2}}
        steps = [{"seconds": seconds} for seconds in (9.0, 4.0, 0.25)]
        return SimpleNamespace(memory=memory, steps=steps)

    rows = [SimpleNamespace(ids=range(count)) for count in (3, 11, 7)]
    monkeypatch.setattr(forecast, "encode_all", lambda *_: rows)
    monkeypatch.setattr(forecast, "train", train)
    monkeypatch.setattr(forecast, "inject", lambda *_: None)
    task = Task("naval", (Example("Hi", "Ahoy!"),) * 3, (Example("Hi", "Ahoy!"),))
    model, spec = SimpleNamespace(tokenizer=None), spec_of()
    found = forecast.forecast(model, task, spec, training_config(spec, 3_000_000))
    assert (found.measured, found.seconds_a_step, found.longest, found.steps) == (7, 0.25, 11, 100)
    assert found.seconds == 25.0
    assert seen == [(3, True, 0, ())]


def test_a_plan_that_just_fits_is_taken_and_a_byte_less_is_refused():
    spec = spec_of()
    config = training_config(spec, 3_000_000)
    needed = planned_bytes(spec, config, 50)
    assert check_plan(spec, config, 50, Limits(memory=needed)) == needed
    with pytest.raises(ValueError, match="by the ledger a step needs .* would fit"):
        check_plan(spec, config, 50, Limits(memory=needed - 1))
    prompt = spec_of(method={"kind": "prompttuning", "num_virtual_tokens": 4})
    assert check_plan(prompt, config, 50, Limits(memory=1)) is None, "it cannot say"


def test_what_was_measured_and_just_fits_is_taken():
    spec = spec_of()
    config, found = training_config(spec, 3_000_000), Forecast(None, 9, 0.5, 100, 20)
    check_fit(found, spec, config, Limits(memory=9, seconds=50.0))
    with pytest.raises(ValueError, match="no setting of batch, recomputation or four bits fits"):
        check_fit(found, spec, config, Limits(memory=8))
    with pytest.raises(ValueError, match=r"train\.steps = 40 would fit"):
        check_fit(found, spec, config, Limits(memory=9, seconds=20.0))


def test_the_changes_that_need_less_the_mildest_first():
    spec = spec_of()
    two, four = "train.accumulate = 2", "train.accumulate = 4"
    again, bits = "train.checkpointing = true", "base.four_bits = true"
    expected = [[two], [four], [again], [two, again], [four, again]]
    expected += [[bits], [two, bits], [four, bits], [again, bits], [two, again, bits]]
    expected += [[four, again, bits]]
    found = list(cheaper(spec, training_config(spec, 3_000_000), 50))
    assert [changes for changes, _ in found] == expected
    needed = {", ".join(changes): planned for changes, planned in found}
    assert needed[four] < needed[two] < planned_bytes(spec, training_config(spec, 3_000_000), 50)
    assert needed[f"{four}, {again}"] < needed[four]
    done = spec_of(base={"four_bits": True}, train={"batch_size": 4, "checkpointing": True})
    left = [changes for changes, _ in cheaper(done, training_config(done, 3_000_000), 50)]
    assert left == [[two], [four]]


@pytest.mark.parametrize("limit", [{"memory": 0}, {"memory": -1}, {"seconds": 0.0}])
def test_a_limit_of_nothing_is_refused(limit):
    with pytest.raises(ValueError, match=f"{next(iter(limit))} must be a positive number"):
        Limits(**limit)
