"""The dial: an adapter at t times its strength, without training.

    y = x W0ᵀ + t · s (x Aᵀ) Bᵀ        ΔW becomes t · ΔW

At t = 0 the model is its base, at t = 1 the fine-tune, and between them lie the models on the line
from W0 to W0 + ΔW. WiSE-FT (arXiv 2109.01903, abstract) averages the weights of a zero-shot and
a fine-tuned model so, to keep the accuracy under distribution shift. What it costs and keeps here,
beside replay: benchmarks/forgetting.py.

B is multiplied, so a saved adapter carries the strength and needs no other reader. The way back,
1 / t, is exact to rounding; t = 0 has none.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..checks import is_number
from .injection import require_adapters
from .layer import LoRALayer
from .trained_copies import trained_copies


@torch.no_grad()
def scale_adapter(model: nn.Module, factor: float) -> nn.Module:
    """Multiply every ΔW by ``factor``, in place. Returns the model.

    Raises ``ValueError``, changing nothing, for a factor that is not a finite number, without
    adapters, for one that is merged, for a method whose update is not linear in one factor,
    and when whole Parameters train too.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> _ = nn.init.ones_(model[0].lora_B)
    >>> before = model[0].delta_weight()
    >>> torch.allclose(scale_adapter(model, 0.5)[0].delta_weight(), 0.5 * before)
    True
    """
    if not is_number(factor) or not math.isfinite(factor):
        raise ValueError(f"factor must be a finite number, such as 0.8, got {factor!r}")
    layers = require_adapters(model)
    for path, layer in layers:
        if type(layer) is not LoRALayer:
            raise ValueError(
                f"{path} is a {type(layer).__name__}: only a plain LoRA's update grows with B "
                "alone. Nothing was changed"
            )
        if layer.merged:
            raise ValueError(f"{path} is merged: unmerge(model) before. Nothing was changed")
    if whole := [*trained_copies(model)]:
        raise ValueError(
            f"{whole[0]} trains too, whole, and B's factor does not reach it: scale_adapter is for "
            "A and B alone. Nothing was changed"
        )
    for _, layer in layers:
        layer.lora_B.mul_(factor)  # type: ignore[operator]
    return model
