"""DoRA: train each output's length apart from its direction.

    W = m · (W0 + s B A) / ‖W0 + s B A‖            row by row of (out, in); m starts as ‖W0‖
    y = base(x) + (g − 1) (base(x) − b) + g s B (A x)        g = m / ‖W0 + s B A‖, (out,)

The norm is a constant to the gradient (section 4.3), so the backward is LoRA's times g, and m gets
its own. Before training g is exactly 1, and the layer is its base to the bit. In training with
dropout the base's term sees the dropped input too, as in PEFT.

Source: arXiv 2402.09353, section 4.1, equation 5. Trains r (in + out) + out a Linear.

Can: merge, files of PEFT, a base in four bits. Cannot: be summed with other adapters (it
multiplies), or share one batch with them as low-rank products.

**Rows of zeros.** A pruned output has ‖W0‖ = 0 and m = 0, and g would be 0/0: PEFT's DoRA is NaN
there from the first step (huggingface/peft #2049, where a reporter counts 434 such rows in a
released model; a fix, #3237, was closed), and its merge writes NaN. The shipped base has 48 of them
in one q_proj. Here g = 1 where the norm is 0: the output stays what the base says.

Left out: the cache of the norm for inference (merge instead), embeddings, convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.layer import LoRALayer
from ..lora.linears import weight_of


class DoRALayer(LoRALayer):
    """LoRA with a trained length for every output; arguments and errors are ``LoRALayer``'s.

    >>> layer = DoRALayer(nn.Linear(6, 4), r=2)
    >>> layer.lora_magnitude_vector.shape
    torch.Size([4])
    >>> torch.equal(layer(torch.ones(1, 6)), layer.base(torch.ones(1, 6)))
    True
    """

    def __init__(self, base: nn.Module, *arguments: Any, **named: Any):
        super().__init__(base, *arguments, **named)
        self.lora_magnitude_vector = nn.Parameter(self.row_norms(weight_of(base)))

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = base(x) + (g − 1) (base(x) − b) + g s B (A x)``: (…, in) to (…, out)."""
        y, bias, weight, dtype = base(x), self.bias, weight_of(base), self.lora_A.dtype
        dropped = x.to(dtype)
        if self.training and self.lora_dropout > 0:
            dropped = F.dropout(dropped, self.lora_dropout)
            plain = F.linear(dropped, weight.to(dtype))
        else:
            plain = y if bias is None else y - bias
        g = self.relative_magnitude(weight)  # (out,)
        low = F.linear(F.linear(dropped, self.lora_A), self.lora_B)  # (…, out)
        return (y + ((g - 1) * plain + g * low * self.scaling)).to(y.dtype)

    def relative_magnitude(self, weight: Tensor) -> Tensor:
        """g = m / ‖W0 + s B A‖ of each row, (out,); 1 where the norm is 0."""
        norm = self.row_norms(weight)
        zero = norm == 0
        # a safe divisor, or the gradient of the branch not taken would be NaN
        return torch.where(zero, 1.0, self.lora_magnitude_vector / norm.masked_fill(zero, 1.0))

    @torch.no_grad()
    def row_norms(self, weight: Tensor) -> Tensor:
        """‖W0 + s B A‖ of each row, (out,), without a gradient."""
        delta = self.delta_weight()
        return torch.linalg.norm(weight.to(delta) + delta, dim=1)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``g · (W0 + ΔW)``, in the adapter's dtype; the bias stays."""
        summed, _ = super().fold(weight, bias)
        return self.relative_magnitude(weight).detach()[:, None] * summed, bias

    def tensors(self) -> dict[str, Tensor]:
        """A, B and the magnitudes, by PEFT's names."""
        return super().tensors() | {"lora_magnitude_vector": self.lora_magnitude_vector}

    def as_lora(self) -> LoRALayer:
        """Raise ``ValueError``: the lengths are no low-rank sum."""
        raise ValueError(
            "DoRA multiplies every row, so its update is not B A: merge it, "
            "or keep it as the one adapter of its model"
        )

    def __repr__(self) -> str:
        return super().__repr__().replace("LoRALayer", "DoRALayer", 1)
