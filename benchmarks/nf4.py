"""How fast are four bits? Quantizing and dequantizing square matrices, ours against bitsandbytes, in one run.

    python benchmarks/nf4.py [--repeats 15] [--device cpu]

Bytes and values are asserted equal before anything is timed. Above 1 we are faster.
"""

from __future__ import annotations

import argparse
import statistics

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from minilora import nf4

try:
    from .common import machine, measure, ratios
except ImportError:  # run as a script
    from common import machine, measure, ratios  # type: ignore[no-redef]


def compare(
    width: int, dtype: torch.dtype, repeats: int, device: str
) -> list[tuple[str, float, float, tuple[float, float, float]]]:
    """(what, our and their millions of weights a second, quartiles of the speed-up) for quantizing and dequantizing."""
    torch.manual_seed(0)
    weight = torch.randn(width, width, dtype=dtype, device=device)
    ours = nf4.quantize(weight)
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(ours.packed, packed.flatten())
    assert torch.equal(ours.dequantize(), dequantize_4bit(packed, state))
    rows = []
    for what, mine, theirs, share in (
        (
            "quantize",
            lambda: nf4.quantize(weight),
            lambda: quantize_4bit(weight, quant_type="nf4", compress_statistics=True),
            1,
        ),
        ("dequantize", lambda: ours.dequantize(), lambda: dequantize_4bit(packed, state), 8),
    ):
        times = measure({"ours": mine, "theirs": theirs}, repeats, max(1, share * 10**6 // width**2), device)
        speeds = [width**2 / statistics.median(times[name]) / 1e6 for name in ("ours", "theirs")]
        rows.append((what, *speeds, ratios(times["theirs"], times["ours"])))
    return rows


def main() -> None:
    """Every size in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 768, 1024, 2048, 4096])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(machine(options.device, bitsandbytes=bitsandbytes))
    print(f"{'':24}{'ours':>8}{'theirs':>8}  million weights a second; ours / theirs, median (quartiles)")
    for dtype in (torch.float32, torch.bfloat16):
        for width in options.sizes:
            for what, mine, theirs, (low, middle, high) in compare(width, dtype, options.repeats, options.device):
                name = f"{what} {width}² {'fp32' if dtype == torch.float32 else 'bf16'}"
                print(f"{name:24}{mine:8.0f}{theirs:8.0f}  {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
