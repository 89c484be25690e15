"""The steps: nothing random survives one, rates keep their ratio, a failure spoils nothing."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilora import TrainConfig
from minilora.training.steps import NotFinite, steps

from .runs import equal, trained_bits


def regression(seed=0):
    """Two groups with peaks of 0.1 and 0.01, a batch for each step, and a loss with dropout."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    peaks = ((model[0], 0.1), (model[2], 0.01))
    groups = [{"params": [*part.parameters()], "lr": lr, "initial_lr": lr} for part, lr in peaks]
    return model, torch.optim.AdamW(groups)


def rows(step):
    """Two parts of a step's batch; a part is known by its token ids."""
    generator = torch.Generator().manual_seed(step)
    return [SimpleNamespace(ids=torch.randn(3, 4, generator=generator), tokens=5) for _ in range(2)]


def squares(model, parts):
    """The mean square of the outputs, with dropout on the inputs; leaves its gradient behind."""
    loss = sum(model(F.dropout(part.ids, 0.3)).square().sum() for part in parts)
    loss.backward()
    return loss.item()


def run(model, optimizer, config, **more):
    """All records of the steps, seconds aside."""
    records = list(steps(model, rows, optimizer, config, objective=squares, **more))
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


SIX = TrainConfig(steps=6)


def test_stopped_in_the_middle_and_continued_the_steps_are_those_of_one_run():
    """Nothing random survives a step, so the generator may be left and a new one may go on."""
    whole, optimizer = regression()
    records = run(whole, optimizer, SIX)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    model, optimizer = regression()
    begun = steps(model, rows, optimizer, SIX, objective=squares)
    first = [record["loss"] for record in itertools.islice(begun, 3)]
    begun.close()
    torch.manual_seed(99)
    rest = run(model, optimizer, SIX, start=3)
    assert first + [record["loss"] for record in rest] == [record["loss"] for record in records]
    assert [record["step"] for record in rest] == [4, 5, 6]
    assert equal(trained_bits(model), trained_bits(whole))


def test_a_gradient_that_is_left_between_two_steps_does_not_enter_the_next():
    """Whoever watches may compute gradients of their own."""
    quiet, optimizer = regression()
    run(quiet, optimizer, SIX)
    model, optimizer = regression()
    for _ in steps(model, rows, optimizer, SIX, objective=squares):
        model(torch.ones(1, 4)).sum().backward()
    assert equal(trained_bits(model), trained_bits(quiet))


def test_a_group_without_a_peak_has_the_rate_it_was_made_with():
    model, _ = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    run(model, optimizer, TrainConfig(steps=1), schedule=lambda step, peak: peak / 2)
    assert optimizer.param_groups[0]["initial_lr"] == 0.25
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_nothing_happens_before_the_first_record_is_asked_for():
    model, optimizer = regression()
    before = trained_bits(model)
    steps(model, rows, optimizer, SIX, objective=squares)
    assert equal(trained_bits(model), before)
    assert run(model, optimizer, SIX, start=6) == []


def test_a_record_says_what_the_step_did():
    model, optimizer = regression()
    [record, *_] = steps(model, rows, optimizer, SIX, objective=squares)
    assert set(record) == {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}
    again, optimizer = regression()
    torch.manual_seed(0)  # step 0 of seed 0
    assert record["loss"] == squares(again, rows(0))
    gradient = torch.cat([p.grad.flatten() for p in again.parameters()])
    assert record["grad_norm"] == pytest.approx(gradient.norm().item())
    assert record["tokens"] == 2 * 5
    assert 0 <= record["seconds"] < 60


def test_an_objective_of_ones_own_gets_the_model_and_the_parts_of_each_step():
    model, optimizer = regression()
    seen = []

    def objective(model, parts):
        seen.append((model, [part.ids.clone() for part in parts]))
        return squares(model, parts)

    list(steps(model, rows, optimizer, TrainConfig(steps=2), objective=objective))
    assert [each is model for each, _ in seen] == [True, True]
    for step, (_, ids) in enumerate(seen):
        expected = [part.ids for part in rows(step)]
        assert all(torch.equal(a, b) for a, b in zip(ids, expected, strict=True))


def rates_of(optimizer, records):
    """The rates of both groups after each step."""
    return [tuple(group["lr"] for group in optimizer.param_groups) for _ in records]


@pytest.mark.parametrize("schedule", [None, lambda step, peak: peak / (step + 1)])
def test_groups_with_peaks_of_their_own_keep_their_ratio(schedule):
    model, optimizer = regression()
    records = steps(model, rows, optimizer, SIX, objective=squares, schedule=schedule)
    rates = rates_of(optimizer, records)
    assert len(rates) == 6
    assert [slow / fast for fast, slow in rates] == pytest.approx([0.1] * 6)
    if schedule is not None:
        assert [fast for fast, _ in rates] == [schedule(step, 0.1) for step in range(6)]


def test_a_schedule_is_asked_for_each_group_with_its_peak():
    model, optimizer = regression()
    asked = []

    def schedule(step, peak):
        asked.append((step, peak))
        return peak

    run(model, optimizer, TrainConfig(steps=2), schedule=schedule)
    assert asked == [(0, 0.1), (0, 0.01), (1, 0.1), (1, 0.01)]


@pytest.mark.parametrize("failure", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights_and_the_optimizer(failure):
    model, optimizer = regression()
    list(itertools.islice(steps(model, rows, optimizer, SIX, objective=squares), 2))
    before, moments = trained_bits(model), copy.deepcopy(optimizer.state_dict())

    def broken(model, parts):
        loss = squares(model, parts)
        model[0].weight.grad[0, 0] = math.inf if failure == "gradient" else 0
        return math.nan if failure == "loss" else loss

    with pytest.raises(NotFinite, match=r"^step 3: loss ") as caught:
        list(steps(model, rows, optimizer, SIX, objective=broken, start=2))
    error = caught.value
    assert isinstance(error, FloatingPointError)
    assert error.step == 2
    assert math.isnan(error.loss) == (failure == "loss")
    assert math.isinf(error.norm) == (failure == "gradient")
    assert equal(trained_bits(model), before)
    assert all(p.grad is None for p in model.parameters())
    after = optimizer.state_dict()
    for index, state in moments["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in state.items())
    whole, other = regression()
    run(whole, other, SIX)
    run(model, optimizer, SIX, start=2)
    assert equal(trained_bits(model), trained_bits(whole)), "after a failure the run can continue"
