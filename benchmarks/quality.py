"""The price of four bits in quality: the base learns naval code with LoRA and QLoRA, many seeds.

    python -m benchmarks.quality [--seeds 0 1 2] [--steps 1000] [--target q_proj v_proj]

Exact match on 1,000 held-out logs that no run trained on, bits a byte on held-out prose, and the
cost of quantizing alone. Nothing is timed. It takes half an hour, and is not a part of ``make
bench``.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import minilora
from minilora import LoraConfig, data

from .common import Row, options, save

BASES = {"floats": None, "nf4": "nf4", "fp4": "fp4", "int4": "int4"}


def fine_tune(method: str, seed: int, settings: Any, held_out: data.Task) -> Row:
    """Exact match and bits a byte after one run."""
    torch.manual_seed(seed)
    quantize = "nf4" if method == "QLoRA" else None
    model = minilora.load_base(quantize=quantize, device=settings.device)
    targets = "all-linear" if settings.target == ["all-linear"] else settings.target
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    quiet = {"validate_every": 100, "progress": False}
    minilora.train(model, data.naval_log(seed=seed), steps=settings.steps, seed=seed, **quiet)
    exact = minilora.exact_match(model, held_out.valid)
    prose = minilora.bits_per_byte(model)
    return {"method": method, "seed": seed, "exact_match": exact, "prose_bits": prose}


def main() -> None:
    """Run every seed of both, and print means and ranges."""
    settings = options(__doc__, seeds=[0, 1, 2], steps=1000, target=["q_proj", "v_proj"], logs=1000)
    held_out = data.naval_log(1, settings.logs, seed=99)
    rows: list[Row] = []
    for name, quantize in BASES.items():
        bits = minilora.bits_per_byte(minilora.load_base(quantize=quantize))
        rows.append({"base": name, "prose_bits": bits})
        print(f"base in {name:<7}{bits:.3f} bits a byte", flush=True)
    for seed in settings.seeds:
        for method in ("LoRA", "QLoRA"):
            row = fine_tune(method, seed, settings, held_out)
            rows.append(row)
            scores = f"exact {row['exact_match']:.1%}  {row['prose_bits']:.3f} bits a byte"
            print(f"{method:<6} seed {seed}  {scores}", flush=True)
    for method in ("LoRA", "QLoRA"):
        exact = [row["exact_match"] for row in rows if row.get("method") == method]
        spread = f"{min(exact):.1%} to {max(exact):.1%}"
        print(f"{method:<6} exact {statistics.mean(exact):.1%} ({spread})")
    save("quality", rows, settings)


if __name__ == "__main__":
    main()
