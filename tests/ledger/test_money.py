"""Spot: the formula against interruptions that are drawn; hours; bytes against files."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minilora
from minilora import ledger
from minilora.ledger.money import CHECKPOINT_BYTES, Spot, best_interval, hours, plan_storage
from minilora.training.checkpoint import State, save_checkpoint


def drawn(run, seed, pieces):
    """T / W of a run whose interruptions are drawn: work, write, be interrupted, start again."""
    draw, clock = random.Random(seed), 0.0
    for _ in range(pieces):
        while True:
            gap = draw.expovariate(1 / run.between)
            if gap >= run.interval + run.checkpoint:
                clock += run.interval + run.checkpoint
                break
            clock += gap + run.restart
    return clock / (pieces * run.interval)


@pytest.mark.parametrize(
    ("between", "checkpoint", "restart", "every"),
    [(1800, 30, 120, None), (1800, 30, 120, 900), (7200, 5, 300, 60), (600, 60, 60, None)],
)
def test_the_formula_is_the_mean_of_interruptions_that_are_drawn(
    between, checkpoint, restart, every
):
    run = Spot(36_000, between, checkpoint, restart, every)
    means = [drawn(run, seed, 1500) for seed in range(8)]
    mean = sum(means) / 8
    error = math.sqrt(sum((each - mean) ** 2 for each in means) / 56)
    assert abs(mean - run.stretch) < 5 * error + 1e-3


def test_the_example_of_half_an_hour():
    run = Spot(36_000, between=1800, checkpoint=30, restart=120)
    assert run.stretch == pytest.approx(1.288, abs=5e-4)
    assert run.saved(0.7) == pytest.approx(0.614, abs=5e-4)
    assert run.saved(run.least_discount) == pytest.approx(0, abs=1e-12)
    assert run.time == run.work * run.stretch


@given(st.floats(60, 1e6), st.floats(1e-3, 0.5), st.floats(0, 1))
def test_no_other_interval_is_better(between, checkpoint_share, restart_share):
    checkpoint, restart = between * checkpoint_share, between * restart_share
    best = Spot(1e5, between, checkpoint, restart)
    for factor in (0.5, 0.9, 1.1, 2):
        other = Spot(1e5, between, checkpoint, restart, every=best.interval * factor)
        assert other.stretch >= best.stretch * (1 - 1e-12)


def test_short_checkpoints_come_near_young_s_rule_and_free_ones_near_the_start():
    assert best_interval(1e6, 1) == pytest.approx(math.sqrt(2e6), rel=1e-3)
    free, nearly = Spot(1, 1800, 0, 120), Spot(1, 1800, 1e-9, 120)
    assert free.interval == 0
    assert free.stretch == pytest.approx(1 + 120 / 1800)
    assert nearly.stretch == pytest.approx(free.stretch, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 1, 1), "work must be a finite positive number, got 0"),
        ((1, -1, 1, 1), "between must be"),
        ((1, 1, -1, 1), "checkpoint must be a number of seconds from 0 on, got -1"),
        ((1, 1, 1, math.nan), "restart must be"),
        ((1, 1, 1, 1, 0), "every must be"),
        ((1, 1, 100, 1), "is never reached"),
    ],
)
def test_impossible_numbers_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Spot(*values)
    with pytest.raises(ValueError, match="discount must be a share"):
        Spot(1, 100, 1, 1).saved(70)
    with pytest.raises(ValueError, match="efficiency must be at most 1"):
        hours(1, 1, efficiency=1.5)


def test_hours_are_tokens_over_speed():
    assert hours(3.6e6, 1000) == 1
    assert hours(3.6e6, 1000, cards=4, efficiency=0.5) == 0.5


def test_the_files_and_a_checkpoint_have_the_predicted_bytes(tmp_path):
    model = minilora.load_base()
    minilora.inject(model)
    saved = minilora.save_adapter(model, tmp_path / "adapter") / "adapter_model.safetensors"
    kept = plan_storage("base", 1000, ledger.plan("base", dtype="float32"))
    assert 0 <= saved.stat().st_size - kept.plan.adapter_file_bytes < 2000  # the copied config
    assert kept.base == sum(p.nbytes for p in minilora.load_base().parameters())
    assert kept.copies == 1000 * kept.base
    assert kept.adapters == kept.base + 1000 * kept.plan.adapter_file_bytes
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values())
    sum(p.sum() for p in trained.values()).backward()
    optimizer.step()
    save_checkpoint(tmp_path / "c", State(trained, optimizer, None), {}, {})
    size = (tmp_path / "c").stat().st_size
    assert 0 < size - CHECKPOINT_BYTES * kept.plan.trainable < 700 * len(trained)  # the header
