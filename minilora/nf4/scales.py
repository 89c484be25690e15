"""Double quantization: a block's scale in 8 bits, and what stands for each of the 256 codes.

    absmax ≈ map[code] · absmax2 + offset

``absmax2`` is one float32 for 256 scales, ``offset`` the mean of all. The map is fine near zero and
coarse at its ends, as scales minus their mean are distributed (QLoRA, arXiv 2305.14314, section 3;
8-bit optimizers, arXiv 2110.02861, section 2.2). ``NF4Tensor.scales`` is the way back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .codebook import constant

BLOCK_SIZES = tuple(2**k for k in range(5, 13))  # 32 to 4096 weights share one scale
SCALE_BLOCK = 256  # so many scales share one float32


@constant
def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values of an 8-bit scale: seven decades, each divided twice as finely as the last.

    For i = 0…6 the midpoints of linspace(0.1, 1, 2^i + 1) times 10^(i-6), with both signs; 0 and 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32, device="cpu")
        middles = (edges[:-1] + edges[1:]) / 2
        values += (10 ** (i - 6) * middles).tolist() + (-(10 ** (i - 6)) * middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@constant
def dynamic_lookup(device: torch.device) -> Tensor:
    """The nearest value's code for 65,536 even steps from -1 to 1: bitsandbytes' table."""
    steps = torch.linspace(-1, 1, 65536, dtype=torch.float64, device="cpu")
    values = dynamic_map(torch.device("cpu")).double()
    return torch.bucketize(steps, (values[:-1] + values[1:]) / 2).to(device, torch.uint8)


def quantize_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(blocks,) float32 scales to their uint8 codes, absmax2 (⌈blocks/256⌉,) and offset ().

    Raises ``ValueError`` for scales so large that their sum overflows.
    """
    offset = absmax.mean()
    if not torch.isfinite(offset):
        raise ValueError(
            "the sum of the blocks' scales overflows float32: quantize such weights with "
            "double_quant=False"
        )
    padding = (0, -len(absmax) % SCALE_BLOCK)
    centred = torch.nn.functional.pad(absmax - offset, padding).view(-1, SCALE_BLOCK)
    absmax2 = centred.abs().amax(dim=1)
    inverse = 1.0 / absmax2
    # all scales alike: bitsandbytes writes code 0 too; nearly alike: there it does not
    alike = torch.isinf(inverse)
    # in [-1, 1]: x · (1/x) never rounds above 1
    scaled = centred * inverse.masked_fill(alike, 0.0)[:, None]
    codes = dynamic_lookup(absmax.device)[((scaled + 1) * 0.5 * 65535 + 0.5).long()]
    return codes.masked_fill_(alike[:, None], 0).view(-1)[: len(absmax)].clone(), absmax2, offset
