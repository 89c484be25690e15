"""AdamW, and the rate of each step: a line up, then a cosine down (arXiv 1608.03983 eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..methods.training_hooks import param_groups, pull_to_neutral
from .config import TrainConfig


def build_optimizer(
    parameters: Mapping[str, Tensor],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    model: nn.Module | None = None,
    loraplus_ratio: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); norms and biases are not decayed.

    Each group's ``initial_lr`` is its peak, which the schedule of ``steps`` follows. With a
    ``model``, its adapters say where decay pulls, and LoRA's B gets ``loraplus_ratio`` times the
    rate (methods/training_hooks.py). ``fused``: one call a group, since an adapter is many small
    tensors, and a call each takes five times as long.
    """
    groups = param_groups(model, parameters, lr, weight_decay, loraplus_ratio)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    if any(group["pull"] for group in groups):
        optimizer.register_step_pre_hook(pull_to_neutral)
    return optimizer


def rate_at(step: int, peak: float, config: TrainConfig) -> float:
    """The learning rate of a step: a linear warm-up to ``peak``, then a cosine to zero.

    >>> round(rate_at(99, 1.0, TrainConfig(steps=100)), 4)
    0.0003
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step + 1 - warm) / (config.steps + 1 - warm)))
