"""What training holds in memory: full fine-tuning, LoRA and QLoRA, side by side, measured on real steps.

    resident = weights (and their scales) + adapters + optimizer      between two steps
    peak     = resident + gradients + activations + temporaries       at a step's largest moment

The same base, batch and optimizer each time; a first step lets AdamW make its moments, the second one is watched by
``ledger.measure``. Tensors are counted, not pages of the process, so Python and torch themselves are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..ledger.measurement import Measured, measure
from ..lora.config import LoraConfig
from ..lora.injection import inject
from ..model.pretrained import load_base
from ..text import columns
from ..training.config import TrainConfig
from ..training.data import Task
from ..training.loop import Run

METHODS = ("full", "LoRA", "QLoRA")


def measure_footprints(
    task: Task,
    lora: LoraConfig,
    config: TrainConfig,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
    methods: Sequence[str] = METHODS,
) -> dict[str, Measured]:
    """Bytes of a training step by method, each on a fresh copy of the base. Raises ``ValueError`` for an unknown method."""
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}: needed some of {METHODS}")
    found = {}
    quiet = replace(config, out=None, resume=False, checkpoint_every=0)
    for method in methods:
        with torch.random.fork_rng():
            model = load_base(
                base, device=device, quantize="nf4" if method == "QLoRA" else None
            ).train()
            if method != "full":
                inject(model, lora)
            run = Run(model, replace(task, valid=()), quiet, ())
            run.step(0)
            found[method] = measure(lambda run=run: run.step(1), model, run.optimizer)  # type: ignore[misc]
    return found


def describe_footprints(found: Mapping[str, Measured], base: str | Path | None) -> str:
    """The table, and where to look for the methods that were not measured: a big base may not even fit in floats."""
    hint = (
        ""
        if len(found) > 1
        else f"\nThe other methods hold the base in floats: minilora plan {base} predicts their memory."
    )
    return f"A training step of this run held in memory (measured):\n{footprint_table(found)}{hint}"


def footprint_table(found: Mapping[str, Measured]) -> str:
    """Resident and peak megabytes (10⁶ bytes), and the peak's parts.

    >>> parts = dict.fromkeys(["weights", "activations", "temporary"], 10**6)
    >>> print(footprint_table({"full": Measured(parts, parts, parts)}))
    MB    resident  peak  weights  activations  other
    full  3.0       3.0   1.0      1.0          1.0
    """
    rows: list[tuple[str, ...]] = [("MB", "resident", "peak", "weights", "activations", "other")]
    for method, measured in found.items():
        at_peak = measured.at_peak
        weights = sum(at_peak.get(name, 0) for name in ("weights", "constants"))
        activations = at_peak.get("activations", 0)
        sizes = (
            sum(measured.resident.values()),
            measured.peak,
            weights,
            activations,
            measured.peak - weights - activations,
        )
        rows.append((method, *(f"{size / 1e6:.1f}" for size in sizes)))
    return "\n".join(columns(rows))
