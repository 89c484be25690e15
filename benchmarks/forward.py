"""What does an adapter cost in the forward pass? Ours and PEFT's against the plain Linear, in one run.

    python benchmarks/forward.py [--rows 512] [--width 768] [--rank 8] [--device cpu]

Contestants take turns, so that a machine that slows down slows all of them; the medians of the repeats are compared, and
ratios are what counts. Before anything is timed, the outputs are asserted equal.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import peft
import torch
from torch import nn

import minilora

try:
    from .common import machine, measure, ratios
except ImportError:  # run as a script
    from common import machine, measure, ratios  # type: ignore[no-redef]


def contestants(rows: int, width: int, r: int, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """The same Linear and the same A and B, plain, ours and PEFT's; the adapted ones agree."""
    torch.manual_seed(0)
    linear = nn.Linear(width, width, device=device)
    x = torch.randn(rows, width, device=device)
    ours = minilora.LoRALayer(linear, r=r, lora_alpha=2 * r)
    nn.init.normal_(ours.lora_B, std=0.02)
    holder = nn.Sequential(linear)
    theirs = peft.get_peft_model(holder, peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0"])).base_model.model[0]
    theirs.lora_A["default"].weight.data = ours.lora_A.data.clone()
    theirs.lora_B["default"].weight.data = ours.lora_B.data.clone()
    torch.testing.assert_close(ours(x), theirs(x))
    merged = minilora.LoRALayer(nn.Linear(width, width, device=device), r=r)
    merged.merge()
    return {
        "plain Linear": lambda: linear(x),
        "minilora": lambda: ours(x),
        "minilora, merged": lambda: merged(x),
        "PEFT": lambda: theirs(x),
    }


def main() -> None:
    """Measure with and without a gradient to come, and print ratios to the plain Linear."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    runs = contestants(options.rows, options.width, options.rank, options.device)
    print(machine(options.device, peft=peft))
    print(f"{options.rows} rows, {options.width} -> {options.width}, r={options.rank}, fp32")
    for mode, context in (("inference", torch.inference_mode), ("forward of a training step", torch.enable_grad)):
        with context():
            times = measure(runs, options.repeats, 10, options.device)
        plain = times["plain Linear"]
        print(f"\n{mode:<28}{'median':>9}  ratio to plain, median (quartiles) of the rounds")
        for name, seconds in times.items():
            low, middle, high = ratios(seconds, plain)
            print(f"  {name:<26}{1e6 * statistics.median(seconds):>6.0f} µs  {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
