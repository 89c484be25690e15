"""Does the cost grow as theory says? A LoRA step against rank, width, depth, sequence, adapters.

    python -m benchmarks.scaling [--seconds 3] [--device cpu]

One size grows, the others stay: a Llama of 4 layers, d=256, 4 rows of 128 tokens, r=8 on all 28
Linears. The exponent k of cost ∝ size^k is fitted on logarithms of the three largest sizes, by
least squares. ``extra`` is the time that the adapters add to the *floor*, the same frozen model
with gradients flowing through it.
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
# Exponents by theory: parameters r (in + out) a Linear; products of width² a layer; attention adds
# to the sequence's 1.
AXES_OF = {
    "trainable": ("rank", "width", "depth", "adapters"),
    "step": ("width", "depth", "sequence"),
    "activations": ("depth", "sequence", "width"),
    "extra": ("rank", "adapters"),
}
EXPECTED = {(axis, cost): 1.0 for cost, axes in AXES_OF.items() for axis in axes}
EXPECTED["width", "step"] = 2.0


def build(size: dict[str, int], device: str) -> tuple[nn.Module, nn.Module]:
    """(adapted, floor) of one size; when not all Linears are adapted, the first ones are."""
    adapted, floor = (models.llama(size["width"], size["depth"], device) for _ in range(2))
    names = [n for n, m in adapted.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    chosen = names if size["adapters"] == USUAL["adapters"] else names[: size["adapters"]]
    config = minilora.LoraConfig(r=size["rank"], lora_alpha=16, target_modules=chosen)
    minilora.inject(adapted, config)
    return adapted.train(), models.frozen(floor).train()


def cost(size: dict[str, int], seconds: float, device: str) -> Row:
    """Trainable parameters, seconds of a step and of the adapters alone, bytes of activations."""
    adapted, floor = build(size, device)
    ids = torch.randint(0, 1536, (4, size["sequence"] + 1), device=device)
    step, optimizer = models.step_of(adapted, ids)
    times = measure({"step": step, "floor": models.step_of(floor, ids)[0]}, seconds, 7, device)
    extra = statistics.median(a - b for a, b in zip(times["step"], times["floor"], strict=True))
    activations = ledger.measure(step, adapted, optimizer).peaks["activations"]
    trainable = minilora.trainable_parameters(adapted)[0]
    timed = {"step": statistics.median(times["step"]), "extra": extra}
    return {"trainable": trainable, **timed, "activations": activations}


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float | None:
    """k of cost ∝ size^k by least squares on logarithms; None if noise makes a cost negative."""
    if min(costs) <= 0:
        return None
    logs = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(*logs).slope


def fit(rows: Sequence[Row], largest: int = 3) -> list[Row]:
    """An exponent for each pair of ``EXPECTED``, from the largest sizes: constants count least."""
    fitted = []
    for (axis, what), expected in EXPECTED.items():
        used = [row for row in rows if row.get("axis") == axis and "size" in row][-largest:]
        k = exponent([row["size"] for row in used], [row[what] for row in used]) if used else None
        fitted.append({"axis": axis, "what": what, "exponent": k, "expected": expected})
    return fitted


def main() -> None:
    """Every axis."""
    settings = options(__doc__, seconds=3.0)
    rows: list[Row] = []
    for axis, values in AXES.items():
        for value in values:
            measured = cost({**USUAL, axis: value}, settings.seconds, settings.device)
            rows.append({"axis": axis, "size": value, **measured})
    for row in fit(rows):
        axis, k = row["axis"], row["exponent"]
        growth = "lost in the noise" if k is None else f"{axis}^{k:.2f}"
        expected = f"{axis}^{row['expected']:.0f}"
        print(f"{row['what']:<12} grows as {growth:<18} expected {expected}", flush=True)
    save("scaling", rows, settings)


if __name__ == "__main__":
    main()
