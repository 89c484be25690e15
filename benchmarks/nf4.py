"""How fast are four bits, and how exact? Ours, bitsandbytes' and torchao's on square matrices.

    python -m benchmarks.nf4 [--sizes 256 768 1024 2048 4096] [--device cpu]

Our bytes and values are asserted equal to bitsandbytes' before anything is timed. torchao's format
differs (its scales are int8, in blocks of their own), so its error and its bits stand beside its
time. A ratio above 1 is slower than bitsandbytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor

from minilora import nf4

from .common import Row, measure, options, rows_of, save

try:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
except ImportError:  # with torchao installed it takes part
    to_nf4 = None

OURS, BITSANDBYTES, TORCHAO = "minilora", "bitsandbytes", "torchao"
SETTINGS: dict[str, Any] = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}


@dataclass(frozen=True)
class Contestant:
    """How a library quantizes and dequantizes, and which tensors it keeps."""

    quantize: Callable[[Tensor], Any]
    dequantize: Callable[[Any], Tensor]
    parts: Callable[[Any], Sequence[Tensor]]


CONTESTANTS = {
    OURS: Contestant(nf4.quantize, lambda q: q.dequantize(), lambda q: list(q.tensors.values())),
    BITSANDBYTES: Contestant(
        lambda weight: quantize_4bit(weight, **SETTINGS),
        lambda q: dequantize_4bit(*q),
        lambda q: (q[0], q[1].absmax, q[1].state2.absmax, q[1].offset),
    ),
}
if to_nf4 is not None:
    CONTESTANTS[TORCHAO] = Contestant(
        to_nf4,
        lambda q: q.get_original_weight(),
        lambda q: (q.quantized_data, q.quantized_scalers, q.quantization_factor, q.scaler_mean),
    )


def compare(width: int, dtype: torch.dtype, seconds: float, device: str) -> list[Row]:
    """Rows for quantizing and dequantizing one matrix, with bits a weight and the error (rms)."""
    torch.manual_seed(0)
    weight = torch.randn(width, width, dtype=dtype, device=device)
    packed = {name: who.quantize(weight) for name, who in CONTESTANTS.items()}
    floats = {name: who.dequantize(packed[name]) for name, who in CONTESTANTS.items()}
    assert torch.equal(packed[OURS].packed, packed[BITSANDBYTES][0].flatten())
    assert torch.equal(floats[OURS], floats[BITSANDBYTES])
    runs: dict[str, dict[str, Callable[[], Any]]] = {"quantize": {}, "dequantize": {}}
    quality = {}
    for name, who in CONTESTANTS.items():
        runs["quantize"][name] = partial(who.quantize, weight)
        runs["dequantize"][name] = partial(who.dequantize, packed[name])
        stored = sum(part.nbytes for part in who.parts(packed[name]))
        rmse = (floats[name].float() - weight.float()).square().mean().sqrt().item()
        quality[name] = {"bits": 8 * stored / width**2, "rmse": rmse}
    rows, kind = [], str(dtype).removeprefix("torch.")
    for what, contestants in runs.items():
        times = measure(contestants, seconds, 7, device)
        rows += rows_of(times, BITSANDBYTES, what=what, width=width, dtype=kind)
    return [{**row, **quality[row["contestant"]]} for row in rows]


def main() -> None:
    """Every size in float32 and bfloat16."""
    settings = options(__doc__, sizes=[256, 768, 1024, 2048, 4096], seconds=1.0)
    rows: list[Row] = []
    for dtype, width in itertools.product((torch.float32, torch.bfloat16), settings.sizes):
        for row in compare(width, dtype, settings.seconds, settings.device):
            name = f"{row['what']} {width}² {row['dtype']}, {row['contestant']}"
            speed = f"{width**2 / row['seconds'] / 1e6:7.0f} M weights/s"
            ratio = f"{1 / row['ratio']['median']:5.2f} × bitsandbytes' speed"
            print(f"{name:44}{speed}, {ratio}", flush=True)
            rows.append(row)
    save("nf4", rows, settings, "bitsandbytes", "torchao")


if __name__ == "__main__":
    main()
