"""How fast are four bits, and how exact? Quantizing and dequantizing square matrices: ours, bitsandbytes', torchao's.

    python -m benchmarks.nf4 [--sizes 256 768 1024 2048 4096] [--device cpu]

Our bytes and values are asserted equal to bitsandbytes' before anything is timed; torchao's format differs (its scales are
int8, in blocks of their own), so its error and its bits stand beside its time. Above 1 in the ratio: slower than bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor

from minilora import nf4

from .common import Row, measure, options, rows_of, save

try:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
except ImportError:  # pip install torchao, and it takes part
    to_nf4 = None

OURS, BITSANDBYTES, TORCHAO = "minilora", "bitsandbytes", "torchao"


SETTINGS: dict[str, Any] = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}


@dataclass(frozen=True)
class Contestant:
    """How one quantizes, dequantizes, and which tensors it then keeps."""

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
    """Rows for quantizing and dequantizing one matrix, with bits a weight and the error's root mean square."""
    torch.manual_seed(0)
    weight = torch.randn(width, width, dtype=dtype, device=device)
    packed = {name: who.quantize(weight) for name, who in CONTESTANTS.items()}
    floats = {name: who.dequantize(packed[name]) for name, who in CONTESTANTS.items()}
    assert torch.equal(packed[OURS].packed, packed[BITSANDBYTES][0].flatten())
    assert torch.equal(floats[OURS], floats[BITSANDBYTES])
    runs: dict[str, dict[str, Callable[[], Any]]] = {
        "quantize": {
            name: lambda who=who: who.quantize(weight) for name, who in CONTESTANTS.items()
        },
        "dequantize": {
            n: lambda who=who, q=packed[n]: who.dequantize(q) for n, who in CONTESTANTS.items()
        },
    }
    found = []
    for what, contestants in runs.items():
        times = measure(contestants, seconds, 7, device)
        for row in rows_of(
            times, BITSANDBYTES, what=what, width=width, dtype=str(dtype).removeprefix("torch.")
        ):
            name = row["contestant"]
            error = floats[name].float() - weight.float()
            stored = sum(part.nbytes for part in CONTESTANTS[name].parts(packed[name]))
            found.append(
                {**row, "bits": 8 * stored / width**2, "rmse": error.square().mean().sqrt().item()}
            )
    return found


def main() -> None:
    """Every size in float32 and bfloat16."""
    given = options(__doc__, sizes=[256, 768, 1024, 2048, 4096], seconds=1.0)
    found: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        for width in given.sizes:
            for row in compare(width, dtype, given.seconds, given.device):
                speed, ratio = width**2 / row["seconds"] / 1e6, row["ratio"]
                name = f"{row['what']} {width}² {row['dtype']}, {row['contestant']}"
                print(
                    f"{name:44}{speed:7.0f} M weights/s, {1 / ratio['median']:5.2f} × bitsandbytes' speed",
                    flush=True,
                )
                found.append(row)
    save("nf4", found, given, "bitsandbytes", "torchao")


if __name__ == "__main__":
    main()
