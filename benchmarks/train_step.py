"""What does a training step cost? Full, LoRA, QLoRA, ours and the peers', and the floor.

    python -m benchmarks.train_step [--seconds 18] [--device cpu]

Three models: 6 layers of d=256 and of d=768, and the shipped base; r=8 on all Linears, fp32, 4 rows
of 128 tokens. Ratios are to the *floor*: the same frozen model with gradients flowing through it
and no adapter.
"""

from __future__ import annotations

import torch

import minilora

from . import models
from .common import Row, measure, options, quartiles, rows_of, save

AGAINST = (
    (models.LORA, models.PEFT),
    (models.LORA, models.FLOOR),
    (models.LORA, models.FULL),
    (models.QLORA, models.PEFT4),
    (models.QLORA, models.LORA),
)


def compare(
    name: str, base: torch.nn.Module, rows: int, time: int, seconds: float, device: str
) -> list[Row]:
    """Every contestant's row, and one for each pair of ``AGAINST`` that took part."""
    ids = torch.randint(0, 1536, (rows, time + 1), device=device)
    contestants = models.contestants(base, ids)
    steps = {who: models.step_of(model, ids)[0] for who, model in contestants.items()}
    times = measure(steps, seconds, 9, device)
    results = rows_of(times, models.FLOOR, model=name)
    for ours, other in AGAINST:
        if other not in times:
            continue
        ratio = quartiles(times[ours], times[other])
        results.append({"model": name, "ours": ours, "other": other, "ratio": ratio})
        shown = f"{ratio['median']:5.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        print(f"  {ours + ' / ' + other:<46}{shown}", flush=True)
    return results


def main() -> None:
    """The three models, one after the other."""
    settings = options(__doc__, widths=[256, 768], layers=6, batch=4, time=128, seconds=18.0)
    layers, batch, time, device = settings.layers, settings.batch, settings.time, settings.device
    bases = {f"{layers} layers, d={d}": models.llama(d, layers, device) for d in settings.widths}
    bases["the shipped base"] = minilora.load_base(device=device)
    rows: list[Row] = []
    for name, base in bases.items():
        print(f"{name}, {batch} x {time} tokens: time of a step", flush=True)
        rows += compare(name, base, batch, time, settings.seconds, device)
    save("train_step", rows, settings, "peft", "bitsandbytes")


if __name__ == "__main__":
    main()
