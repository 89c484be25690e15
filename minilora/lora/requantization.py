"""What a weight loses when it is put back into four bits after a merge, measured.

    lost = (W0 + ΔW) − dequantize(quantize(W0 + ΔW))

The levels of four bits are further apart than most of ΔW is large, so the sum falls back to the levels of W0, and a few
weights jump by far more than they should (huggingface/peft #2321). Two ratios say it: ‖lost‖/‖ΔW‖, of what was learnt, and
‖lost‖/‖W0 + ΔW‖, the error of the outputs for inputs without a preferred direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nf4.linear import NF4Linear, plain_linear
from ..text import columns
from .layer import LoRALayer


class Loss(NamedTuple):
    """What one Linear lost to four bits: ‖lost‖/‖ΔW‖, ‖lost‖/‖W0 + ΔW‖, and the share of its bytes that changed at all.

    For inputs without a preferred direction the second is the relative error of the outputs, root mean square.
    """

    name: str
    of_update: float
    of_output: float
    bytes_changed: float


@dataclass(frozen=True)
class Requantized:
    """What a merge back into four bits lost; ``output_difference`` is ‖f4(x) − f(x)‖/‖f(x)‖ on the given inputs, if any."""

    losses: tuple[Loss, ...]
    output_difference: float | None

    def __str__(self) -> str:
        rows = [("module", "lost of ΔW", "error of outputs", "bytes changed")]
        rows += [
            (
                loss.name,
                f"{loss.of_update:.0%}",
                f"{loss.of_output:.1%}",
                f"{loss.bytes_changed:.1%}",
            )
            for loss in self.losses
        ]
        lines = columns(rows)
        if self.output_difference is not None:
            lines.append(
                f"the model's outputs moved by {self.output_difference:.1%} (‖f4(x) − f(x)‖ / ‖f(x)‖)"
            )
        return "\n".join(lines)


def requantize_base(layer: LoRALayer, weight: Tensor) -> NF4Linear:
    """A merged (out, in) weight in four bits, in the way the layer's base is."""
    base: Any = layer.base
    settings = (base.block_size, base.absmax2 is not None, base.kind, base.compute_dtype)
    return NF4Linear.from_linear(plain_linear(weight, base.bias), *settings).train(layer.training)


def loss_of(name: str, layer: LoRALayer, weight: Tensor, again: NF4Linear) -> Loss:
    """Compare a merged weight with what four bits kept of it, ``again``."""
    base: Any = layer.base
    lost = (again.weight.float() - weight.float()).norm().item()
    changed = torch.ne(again.quantized.packed, base.packed).float().mean().item()
    update, total = layer.delta_weight().norm().item(), weight.float().norm().item()
    return Loss(name, lost / max(update, 1e-30), lost / max(total, 1e-30), changed)


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """A model's outputs (logits) in float32, with dropout off."""
    was_training = model.training
    try:
        result = model.eval()(inputs)
    finally:
        model.train(was_training)
    return getattr(result, "logits", result).float()
