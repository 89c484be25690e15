"""What a weight loses when it is put back into four bits after a merge, measured.

    lost = (W0 + ΔW) − dequantize(quantize(W0 + ΔW))

The gaps between the levels of four bits are wider than most entries of ΔW, so the sum falls back to
the levels of W0, and a few weights jump by far more than they should (huggingface/peft #2321). Two
ratios say it: ‖lost‖/‖ΔW‖ is the share of what was learnt; ‖lost‖/‖W0 + ΔW‖ is the error of the
outputs, for inputs without a preferred direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nf4.linear import NF4Linear
from ..text import columns
from .adapter_layer import AdapterLayer


class Loss(NamedTuple):
    """What one Linear lost to four bits.

    ``of_update`` is ‖lost‖/‖ΔW‖; ``of_output`` is ‖lost‖/‖W0 + ΔW‖, which for inputs without a
    preferred direction is the relative error of the outputs (root mean square); ``bytes_changed``
    is the share of its bytes that the merge changed at all.
    """

    name: str
    of_update: float
    of_output: float
    bytes_changed: float


@dataclass(frozen=True)
class Requantized:
    """What a merge back into four bits lost.

    ``output_difference`` is ‖f4(x) − f(x)‖/‖f(x)‖ on the given inputs, if any.

    >>> print(Requantized((Loss("q_proj", 0.83, 0.09, 0.2),), None))
    module  lost of ΔW  error of outputs  bytes changed
    q_proj  83%         9.0%              20.0%
    """

    losses: tuple[Loss, ...]
    output_difference: float | None

    def __str__(self) -> str:
        rows = [("module", "lost of ΔW", "error of outputs", "bytes changed")]
        for name, *shares in self.losses:
            of_update, of_output, changed = shares
            rows.append((name, f"{of_update:.0%}", f"{of_output:.1%}", f"{changed:.1%}"))
        lines = columns(rows)
        if self.output_difference is not None:
            moved = f"{self.output_difference:.1%} (‖f4(x) − f(x)‖ / ‖f(x)‖)"
            lines.append(f"the model's outputs moved by {moved}")
        return "\n".join(lines)


def quantize_like(base: NF4Linear, merged: nn.Linear) -> NF4Linear:
    """A merged Linear in four bits, quantized in the way its base is."""
    settings: Any = (base.block_size, base.absmax2 is not None, base.kind, base.compute_dtype)
    return NF4Linear.from_linear(merged, *settings).train(base.training)


def loss_of(
    name: str, layer: AdapterLayer, onto: Tensor | None, merged: Tensor, again: NF4Linear
) -> Loss:
    """Compare a merged weight with what four bits kept of it, ``again``.

    ``onto`` is the W0 that it was merged onto, if not the layer's own.
    """
    base: Any = layer.base
    before = base.weight if onto is None else onto.detach()
    folded, _ = layer.fold(before, layer.bias)
    update = (folded.detach() - before.to(folded)).norm().item()  # not rounded to the base's dtype
    lost = (again.weight.float() - merged.float()).norm().item()
    changed = torch.ne(again.quantized.packed, base.packed).float().mean().item()
    total = merged.float().norm().item()
    return Loss(name, lost / max(update, 1e-30), lost / max(total, 1e-30), changed)


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """A model's outputs (logits) in float32, with dropout off."""
    was_training = model.training
    try:
        result = model.eval()(inputs)
    finally:
        model.train(was_training)
    return getattr(result, "logits", result).float()
