"""What does a training step cost? Full, LoRA and QLoRA, ours and the peers', and the floor, in one run.

    python -m benchmarks.train_step [--seconds 18] [--device cpu]

Three models: 6 layers of d=256 and of d=768, and the shipped base; r=8 on all Linears, fp32, 4 rows of 128 tokens. The ratio is
to the *floor*: the same frozen model with gradients flowing through it and no adapter.
"""

from __future__ import annotations

import torch

import minilora

from . import models
from .common import Row, measure, options, ratios, rows_of, save

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
    steps = {
        who: models.step_of(model, ids)[0] for who, model in models.contestants(base, ids).items()
    }
    times = measure(steps, seconds, 9, device)
    found = rows_of(times, models.FLOOR, model=name)
    for ours, other in AGAINST:
        if other in times:
            low, middle, high = ratios(times[ours], times[other])
            found.append(
                {
                    "model": name,
                    "ours": ours,
                    "other": other,
                    "ratio": {"low": low, "median": middle, "high": high},
                }
            )
            print(
                f"  {ours + ' / ' + other:<46}{middle:5.2f} ({low:.2f} to {high:.2f})", flush=True
            )
    return found


def main() -> None:
    """The three models, one after the other."""
    given = options(__doc__, widths=[256, 768], layers=6, batch=4, time=128, seconds=18.0)
    found = []
    bases = {
        f"{given.layers} layers, d={width}": models.llama(width, given.layers, given.device)
        for width in given.widths
    }
    for name, base in {
        **bases,
        "the shipped base": minilora.load_base(device=given.device),
    }.items():
        print(f"{name}, {given.batch} x {given.time} tokens: time of a step", flush=True)
        found += compare(name, base, given.batch, given.time, given.seconds, given.device)
    save("train_step", found, given, "peft", "bitsandbytes")


if __name__ == "__main__":
    main()
