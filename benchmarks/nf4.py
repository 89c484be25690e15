"""How fast are four bits, and how exact? Quantizing and dequantizing square matrices: ours, bitsandbytes', torchao's.

    python benchmarks/nf4.py [--sizes 256 768 1024 2048 4096] [--device cpu]

Our bytes and values are asserted equal to bitsandbytes' before anything is timed; torchao's format differs (its scales are
int8, in blocks of their own), so its error and its bits stand beside its time. Above 1 in the ratio: slower than bitsandbytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from minilora import nf4

try:
    from .common import Row, measure, options, rows_of, save
except ImportError:  # run as a script
    from common import Row, measure, options, rows_of, save  # type: ignore[no-redef]

OURS, BITSANDBYTES, TORCHAO = "minilora", "bitsandbytes", "torchao"


def torchao_nf4() -> Any:
    """torchao's quantizer, without its messages about kernels for other machines."""
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
    finally:
        logging.disable(logging.NOTSET)
    return to_nf4


def compare(width: int, dtype: torch.dtype, seconds: float, device: str) -> list[Row]:
    """Rows for quantizing and dequantizing one matrix, with bits a weight and the error's root mean square."""
    torch.manual_seed(0)
    weight = torch.randn(width, width, dtype=dtype, device=device)
    to_nf4 = torchao_nf4()
    ours, (packed, state), theirs = nf4.quantize(weight), quantize_4bit(weight, **BNB), to_nf4(weight)
    assert torch.equal(ours.packed, packed.flatten())
    assert torch.equal(ours.dequantize(), dequantize_4bit(packed, state))
    tasks: dict[str, dict[str, Callable[[], Any]]] = {
        "quantize": {
            OURS: lambda: nf4.quantize(weight),
            BITSANDBYTES: lambda: quantize_4bit(weight, **BNB),
            TORCHAO: lambda: to_nf4(weight),
        },
        "dequantize": {
            OURS: lambda: ours.dequantize(),
            BITSANDBYTES: lambda: dequantize_4bit(packed, state),
            TORCHAO: lambda: theirs.get_original_weight(),
        },
    }
    parts = (theirs.quantized_data, theirs.quantized_scalers, theirs.quantization_factor, theirs.scaler_mean)
    stored = {OURS: ours.nbytes, TORCHAO: sum(part.nbytes for part in parts)}
    stored[BITSANDBYTES] = sum(part.nbytes for part in (packed, state.absmax, state.state2.absmax, state.offset))
    found = []
    for what, runs in tasks.items():
        for row in rows_of(measure(runs, seconds, 7, device), BITSANDBYTES, what=what, width=width, dtype=str(dtype)[6:]):
            error = tasks["dequantize"][row["contestant"]]().float() - weight.float()
            row |= {"bits": 8 * stored[row["contestant"]] / width**2, "rmse": error.square().mean().sqrt().item()}
            found.append(row)
    return found


BNB: dict[str, Any] = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}


def main() -> None:
    """Every size in float32 and bfloat16."""
    given = options(__doc__, sizes=[256, 768, 1024, 2048, 4096], seconds=1.5)
    found: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        for width in given.sizes:
            for row in compare(width, dtype, given.seconds, given.device):
                speed, ratio = width**2 / row["seconds"] / 1e6, row["ratio"]
                name = f"{row['what']} {width}² {row['dtype']}, {row['contestant']}"
                print(f"{name:44}{speed:7.0f} M weights/s, {1 / ratio['median']:5.2f} × bitsandbytes' speed", flush=True)
                found.append(row)
    save("nf4", found, given, "bitsandbytes", "torchao")


if __name__ == "__main__":
    main()
