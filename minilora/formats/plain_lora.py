"""An adapter of one rank and one alpha, for readers that know no patterns.

    y = W0 x + s_i B_i A_i x,    s_i = alpha_i / r_i, or alpha_i / √r_i

vLLM and llama.cpp read one ``r`` and one ``lora_alpha`` from the config, so a module of another
rank is refused there and one of another scale computes something else in silence. Here every module
gets the largest rank R: A_i gets rows of zeros, B_i columns of zeros, and B A does not change. The
commonest scale s stays in ``lora_alpha = s R``; where a module has another, B_i is multiplied by
s_i / s. rsLoRA becomes an ordinary scale.

The price is the size of the file: every module is stored at rank R.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mode

import torch.nn.functional as F
from torch import Tensor

from ..lora.layer import LoRALayer

Factors = dict[str, tuple[Tensor, Tensor]]  # A (R, in) and B (out, R) of each module, by its path


def plain_lora(layers: Sequence[tuple[str, LoRALayer]]) -> tuple[int, float, Factors]:
    """R, alpha, and A and B of every layer for that rank and that alpha.

    >>> from torch import nn
    >>> layers = [("q", LoRALayer(nn.Linear(4, 4), r=1)), ("k", LoRALayer(nn.Linear(4, 4), r=3))]
    >>> r, lora_alpha, factors = plain_lora(layers)
    >>> r, lora_alpha, factors["q"][0].shape
    (3, 48.0, torch.Size([3, 4]))
    """
    rank = max(layer.r for _, layer in layers)
    lora_alpha = mode(layer.scaling for _, layer in layers) * rank
    factors = {}
    for name, layer in layers:
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        missing, ratio = rank - layer.r, layer.scaling / (lora_alpha / rank)
        A = F.pad(A, (0, 0, 0, missing))  # (r, in) to (R, in)
        B = F.pad(B, (0, missing)) * ratio  # (out, r) to (out, R)
        factors[name] = A, B
    return rank, lora_alpha, factors
