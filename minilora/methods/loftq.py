"""LoftQ: on a base in four bits, start LoRA as what the rounding lost.

    repeat:    Q = quantize(W − s B A)       s B A = SVD_r(W − Q)       (B A = 0 at first)
    y = x Qᵀ + s B (A x)                     A = √(S_r/s) V_rᵀ,  B = U_r √(S_r/s)

QLoRA starts at Q and not at W: LoRA's own start adds nothing, so the first steps repair what four
bits broke. LoftQ gives A and B the largest part of it instead. With one round Q is the base as it
was quantized; with more rounds its codes change, and the adapter belongs to that base.

Source: arXiv 2309.14717, algorithm 1. The name is PEFT's, whose function does the first round. On
the shipped base, r = 8 beside every Linear, one round leaves 90% of ‖W − Q‖ and five leave 81%; of
the 0.015 bits a byte that four bits cost there, 0.013 and 0.009 are left.

**The scale.** PEFT's A and B leave s out (huggingface/peft #1982), so with alpha ≠ r it starts at
Q + s (W − Q), which for s = 2 is as far from W as Q is, on the other side. Here s is divided out.

Can: all that LoRA can on a base in four bits; a file is plain LoRA's. Cannot: start without the
float weights; be moved, after more than one round, to a base that was quantized plainly (the file's
fingerprint warns of it). PEFT's own files that say ``init_lora_weights: "loftq"`` and had one round
are read on a base in NF4 with float scales, in blocks of 64, and refused by name on another.

Left out: ``init_lora_weights="loftq"`` on a base in floats, which PEFT rounds but keeps in floats;
two bits and eight; another precision for some layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_whole
from ..lora.injection import require_adapters
from ..lora.layer import LoRALayer
from ..lora.merging import original_weights
from ..lora.requantization import quantize_like
from ..nf4.linear import NF4Linear, plain_linear
from .pissa import principal

FAR = 0.5  # of ‖W‖: no four bits of it are as far as that


@torch.no_grad()
def replace_lora_weights_loftq(
    model: nn.Module, original: nn.Module, iterations: int = 1
) -> nn.Module:
    """Start a quantized model's A and B as what four bits lost of ``original``; returns the model.

    ``original`` is the float model that was quantized; ``iterations``: rounds (above), of which the
    first leaves the base's codes as they are. Raises ``ValueError``, changing nothing, unless every
    adapter is an unmerged LoRA on four bits whose float weight is in ``original``.

    >>> import copy
    >>> from minilora import LoraConfig, inject, quantize_base
    >>> original = nn.Sequential(nn.Linear(64, 64))
    >>> model = quantize_base(copy.deepcopy(original))
    >>> _ = inject(model, LoraConfig(r=8, target_modules=["0"]))
    >>> lost = torch.dist(original[0].weight, model[0].weight)
    >>> layer = replace_lora_weights_loftq(model, original)[0]
    >>> bool(torch.dist(original[0].weight, layer.weight + layer.delta_weight()) < lost)
    True
    """
    check_whole("iterations", iterations, 1)
    layers: dict[str, Any] = dict(require_adapters(model))
    for path, layer in layers.items():
        if type(layer) is not LoRALayer or layer.merged or not isinstance(layer.base, NF4Linear):
            raise ValueError(
                f"{path}: LoftQ starts an unmerged LoRA on a base in four bits, got {layer} around "
                f"a {type(layer.base).__name__}: unmerge(model) if it is merged; else take the "
                "float model, quantize_base, inject plain LoRA. Nothing was changed"
            )
    weights = original_weights(original, layers, "original")
    starts = {path: start(path, weights[path], layers[path], iterations) for path in layers}
    for path, (base, A, B) in starts.items():
        layer = layers[path]
        layer.base.put(base.quantized)  # the module stays, and with it a bias that trains
        layer.lora_A.zero_()[: len(A)] = A  # fewer rows than r where that is above min(in, out)
        layer.lora_B.zero_()[:, : len(A)] = B
    return model


def start(
    path: str, weight: Tensor, layer: LoRALayer, iterations: int
) -> tuple[nn.Module, Tensor, Tensor]:
    """Q, A (r, in) and B (out, r) of one Linear after so many rounds."""
    base: Any = layer.base
    weight = weight.to(layer.lora_A)
    if (lost := torch.dist(weight, base.weight.to(weight))) > FAR * weight.norm():
        raise ValueError(
            f"{path}: the base is {lost / weight.norm():.2f} of ‖W‖ away from the original's "
            "weight: give the model that it was quantized from. Nothing was changed"
        )
    A = B = weight.new_zeros(0)  # the first round needs none
    for number in range(iterations):
        if number > 0:
            rest = weight - layer.scaling * B @ A
            base = quantize_like(base, plain_linear(rest.to(base.dtype), base.bias))
        A, B = principal(weight - base.weight.to(weight), layer.r, layer.scaling)
    return base, A, B
