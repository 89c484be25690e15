"""Loss scaling does what torch's GradScaler does, and a resumed run knows its scale."""

import pytest
import torch
from torch import nn

from minilora import TrainConfig, train
from minilora.training import loss_scaling
from minilora.training.loss_scaling import LossScaler
from minilora.training.run import set_up
from minilora.training.steps import steps

from .runs import QUICK, TASK, adapted, equal, trained_bits


def small():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def inputs(step):
    """Some steps have a gradient that overflows float32 once it is scaled."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
    return x * (1e34 if step in (2, 3, 7) else 1.0)


def gradscaler(count, interval):
    """Weights and scales of torch's own."""
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler, scales = torch.amp.GradScaler("cpu", growth_interval=interval), []
    for step in range(count):
        optimizer.zero_grad()
        scaler.scale(model(inputs(step)).sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return model, scales


def test_scales_and_weights_are_those_of_torchs_grad_scaler(monkeypatch):
    monkeypatch.setattr(loss_scaling, "GROW_AFTER", 3)
    theirs, their_scales = gradscaler(12, 3)
    model, scaler, scales, norms = small(), LossScaler(), [], []

    def objective(model, parts):
        loss = model(parts).sum()
        (scaler.scale * loss).backward()
        return loss.item()

    class Part(torch.Tensor):
        tokens = 1

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    taken = steps(
        model,
        lambda step: inputs(step).as_subclass(Part),
        optimizer,
        TrainConfig(steps=12),
        objective=objective,
        schedule=lambda step, peak: peak,
        scaler=scaler,
    )
    for record in taken:
        scales.append(scaler.scale)
        norms.append(record["grad_norm"])
    assert scales == their_scales
    assert len(set(scales)) > 2
    assert [step for step, norm in enumerate(norms) if norm is None] == [2, 3, 7]
    assert equal(trained_bits(model), trained_bits(theirs))


def test_a_gradient_that_no_scale_helps_ends_the_run():
    scaler = LossScaler(scale=2.0)
    assert scaler.must_skip(finite=False)
    assert not scaler.must_skip(finite=False)


def test_training_in_float16_learns_as_float32_does_and_its_gradients_are_unscaled():
    losses = {}
    for fp16 in (False, True):
        config = TrainConfig(steps=4, fp16=fp16, **QUICK)
        model = adapted()
        run = set_up(model, TASK, config)
        if fp16:  # which a CPU is refused, but can do; the first scale would have to be found
            run.state.scaler.scale = 1024.0
        records = list(run.steps(model.train(), config))
        losses[fp16] = [record["loss"] for record in records]
        assert all(record["grad_norm"] for record in records)
    # logits of float16 have 11 bits; a wrong scale would be off by 1024
    assert losses[True] == pytest.approx(losses[False], rel=2e-2)
    assert losses[True] != losses[False]


def test_a_resumed_run_goes_on_with_its_scale(tmp_path, monkeypatch):
    monkeypatch.setattr("minilora.training.loop.check_run", lambda *_: None)  # it is on a CPU
    monkeypatch.setattr(loss_scaling, "GROW_AFTER", 3)
    settings = {**QUICK, "steps": 5, "fp16": True, "checkpoint_every": 2}

    class Cut(Exception):
        pass

    def cut(record):
        if record["step"] == 5:
            raise Cut

    whole, first, second = adapted(), adapted(), adapted(seed=5)
    train(whole, TASK, out=tmp_path / "whole", **settings)
    with pytest.raises(Cut):
        train(first, TASK, out=tmp_path / "cut", callbacks=[cut], **settings)
    train(second, TASK, out=tmp_path / "cut", resume=True, **settings)
    assert equal(trained_bits(second), trained_bits(whole))
    scalers = []
    for name in ("whole", "cut"):
        config = TrainConfig(out=tmp_path / name, resume=True, **settings)
        scalers.append(set_up(adapted(), TASK, config).state.scaler)
    assert scalers[0] == scalers[1] != LossScaler()


def test_a_cpu_is_refused_by_name_and_both_halves_together():
    with pytest.raises(ValueError, match=r"fp16=True is for cards .* on a CPU.*take bf16=True"):
        train(adapted(), TASK, fp16=True, **QUICK)
    with pytest.raises(ValueError, match="give bf16 or fp16, got both"):
        TrainConfig(bf16=True, fp16=True)
