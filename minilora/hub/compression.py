"""Adapters that nobody asks for take less room: A and B in half precision, or in four bits.

    fp16    16 bits a weight      relative error at most 2⁻¹¹ (below 6e-5: 3e-8 absolute)
    nf4     4.13 bits a weight    about 9% of a block's standard deviation (nf4/tensor.py)

NF4 of a LoRA is not QLoRA. There the base is in four bits and A and B are trained on top of the
error; here the trained A and B themselves are rounded, and nothing learns around it. Measured on
naval code, three seeds, 1,000 held-out logs each (``benchmarks/compression.py``):

    float32    99.1  99.4  99.4% exact    89,536 bytes
    fp16       99.1  99.4  99.4%          45,040
    nf4        98.7  99.3  99.4%          13,316

A compressed adapter is *another* adapter, so it is another version: ``1.2.0+nf4``, with ``1.2.0``
as its parent. What was given under ``1.2.0`` is never replaced. On the way out its floats are made
again, always to the same bits.

All tensors become one vector, each padded to whole blocks, so that no block mixes two tensors and
the file has four tensors instead of four for each A and B: their names and shapes alone would be
larger than a small adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..formats.peft_files import packed, unpacked
from ..nf4 import NF4Tensor, quantize

KINDS = ("fp16", "nf4")
BLOCK = 64


def compressed(tensors: Mapping[str, Tensor], kind: str) -> bytes:
    """The tensors as one small file. Raises ``ValueError`` for an unknown kind, or values too large
    for half precision.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a compression of {' or '.join(KINDS)}, got {kind!r}")
    ordered = dict(sorted(tensors.items()))
    layout = [[name, list(tensor.shape)] for name, tensor in ordered.items()]
    if kind == "fp16":
        halves = {"values": torch.cat([t.reshape(-1) for t in ordered.values()]).half()}
        if not torch.isfinite(halves["values"]).all():
            raise ValueError("the adapter has values above 65,504, the largest of float16: use nf4")
        return packed(halves, {"kind": kind, "layout": json.dumps(layout)})
    padded = [
        torch.nn.functional.pad(t.reshape(-1).float(), (0, -t.numel() % BLOCK))
        for t in ordered.values()
    ]
    four_bits = quantize(torch.cat(padded), BLOCK)
    return packed(four_bits.tensors, {"kind": kind, "layout": json.dumps(layout)})


def decompressed(content: bytes) -> dict[str, Tensor]:
    """The tensors in float32 again.

    >>> A = {"lora_A": torch.linspace(-1, 1, 200).view(2, 100)}
    >>> decompressed(compressed(A, "nf4"))["lora_A"].shape, len(compressed(A, "nf4")) < 4 * 200
    (torch.Size([2, 100]), True)
    >>> (decompressed(compressed(A, "fp16"))["lora_A"] - A["lora_A"]).abs().max() < 2**-11
    tensor(True)
    """
    parts, about = unpacked(content)
    layout = json.loads(about["layout"])
    sizes = [math.prod(shape) for _, shape in layout]
    if about["kind"] == "nf4":
        sizes = [size + -size % BLOCK for size in sizes]
        whole = NF4Tensor(
            parts["packed"],
            parts["absmax"],
            parts["absmax2"],
            parts["offset"],
            torch.Size([sum(sizes)]),
            block_size=BLOCK,
        ).dequantize()
    else:
        whole = parts["values"].float()
    return {
        name: values[: math.prod(shape)].view(shape).clone()
        for (name, shape), values in zip(layout, whole.split(sizes), strict=True)
    }
