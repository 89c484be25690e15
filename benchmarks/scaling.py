"""Does the cost grow as it should? A LoRA step against rank, width, depth, sequence and the number of adapted Linears.

    python -m benchmarks.scaling [--seconds 3] [--device cpu]

One thing grows, the rest stays: a Llama of 4 layers, d=256, 4 rows of 128 tokens, r=8 on all 28 Linears. The exponent k of
cost ∝ size^k is fitted on logarithms of the three largest sizes, by least squares. ``extra`` is what the adapters add to the
*floor*, the same frozen model with gradients flowing through it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import nn

import minilora
from minilora import ledger

from . import models
from .common import Row, measure, options, save

AXES: dict[str, tuple[int, ...]] = {
    "rank": (1, 4, 16, 64, 256),
    "width": (128, 256, 512, 1024),
    "depth": (2, 4, 8, 16),
    "sequence": (64, 128, 256, 512),
    "adapters": (7, 14, 21, 28),
}
USUAL = {"rank": 8, "width": 256, "depth": 4, "sequence": 128, "adapters": 28}
# What theory says of each: parameters r (in + out) a Linear; products of width² a layer; attention adds to the sequence's 1.
EXPECTED = {
    ("rank", "trainable"): 1.0,
    ("width", "trainable"): 1.0,
    ("depth", "trainable"): 1.0,
    ("adapters", "trainable"): 1.0,
    ("width", "step"): 2.0,
    ("depth", "step"): 1.0,
    ("sequence", "step"): 1.0,
    ("depth", "activations"): 1.0,
    ("sequence", "activations"): 1.0,
    ("width", "activations"): 1.0,
    ("rank", "extra"): 1.0,
    ("adapters", "extra"): 1.0,
}


def build(size: dict[str, int], device: str) -> tuple[nn.Module, nn.Module]:
    """(adapted, floor) of one size; fewer adapters stand in the first layers."""
    adapted, floor = (models.llama(size["width"], size["depth"], device) for _ in range(2))
    names = [n for n, m in adapted.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    chosen = names if size["adapters"] == USUAL["adapters"] else names[: size["adapters"]]
    minilora.inject(
        adapted, minilora.LoraConfig(r=size["rank"], lora_alpha=16, target_modules=chosen)
    )
    return adapted.train(), models.frozen(floor).train()


def cost(size: dict[str, int], seconds: float, device: str) -> Row:
    """Trainable parameters, seconds of a step and of what the adapters add, bytes of activations."""
    adapted, floor = build(size, device)
    ids = torch.randint(0, 1536, (4, size["sequence"] + 1), device=device)
    step, optimizer = models.step_of(adapted, ids)
    times = measure({"step": step, "floor": models.step_of(floor, ids)[0]}, seconds, 7, device)
    extra = statistics.median(a - b for a, b in zip(times["step"], times["floor"], strict=True))
    activations = ledger.measure(step, adapted, optimizer).peaks["activations"]
    trainable = minilora.trainable_parameters(adapted)[0]
    return {
        "trainable": trainable,
        "step": statistics.median(times["step"]),
        "extra": extra,
        "activations": activations,
    }


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float | None:
    """k of cost ∝ size^k by least squares on logarithms; None where a cost is not positive (noise larger than it)."""
    if min(costs) <= 0:
        return None
    return statistics.linear_regression(
        [math.log(x) for x in sizes], [math.log(y) for y in costs]
    ).slope


def fit(rows: Sequence[Row], largest: int = 3) -> list[Row]:
    """An exponent for each pair of ``EXPECTED``, from the largest sizes: constant costs count least there."""
    found = []
    for (axis, what), expected in EXPECTED.items():
        used = [row for row in rows if row.get("axis") == axis and "size" in row][-largest:]
        k = exponent([row["size"] for row in used], [row[what] for row in used]) if used else None
        found.append({"axis": axis, "what": what, "exponent": k, "expected": expected})
    return found


def main() -> None:
    """Every axis."""
    given = options(__doc__, seconds=3.0)
    found: list[Row] = []
    for axis, values in AXES.items():
        found += [
            {
                "axis": axis,
                "size": value,
                **cost({**USUAL, axis: value}, given.seconds, given.device),
            }
            for value in values
        ]
    for row in fit(found):
        shown = (
            "lost in the noise"
            if row["exponent"] is None
            else f"{row['axis']}^{row['exponent']:.2f}"
        )
        print(
            f"{row['what']:<12} grows as {shown:<18} expected {row['axis']}^{row['expected']:.0f}",
            flush=True,
        )
    save("scaling", found, given)


if __name__ == "__main__":
    main()
