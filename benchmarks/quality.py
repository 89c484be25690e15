"""What four bits cost in quality: the shipped base learns naval code with LoRA and with QLoRA, several seeds each.

    python -m benchmarks.quality [--seeds 0 1 2] [--steps 1000] [--target q_proj v_proj]

Exact match on 1,000 held-out logs that no run trained on, bits a byte on held-out prose, and what quantizing alone costs.
Nothing is timed here; it takes half an hour, and is no part of ``make bench``.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import minilora
from minilora import LoraConfig, data

from .common import Row, options, save

BASES = {"floats": None, "nf4": "nf4", "fp4": "fp4", "int4": "int4"}


def fine_tune(method: str, seed: int, given: Any, held_out: data.Task) -> Row:
    """Exact match and bits a byte after one run."""
    torch.manual_seed(seed)
    model = minilora.load_base(quantize="nf4" if method == "QLoRA" else None, device=given.device)
    targets = "all-linear" if given.target == ["all-linear"] else given.target
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    minilora.train(
        model,
        data.naval_log(seed=seed),
        steps=given.steps,
        seed=seed,
        validate_every=100,
        progress=False,
    )
    scores = {
        "exact_match": minilora.exact_match(model, held_out.valid),
        "prose_bits": minilora.bits_per_byte(model),
    }
    return {"method": method, "seed": seed, **scores}


def main() -> None:
    """Run every seed of both, and print means and ranges."""
    given = options(__doc__, seeds=[0, 1, 2], steps=1000, target=["q_proj", "v_proj"], logs=1000)
    held_out = data.naval_log(1, given.logs, seed=99)
    found: list[Row] = []
    for name, quantize in BASES.items():
        found.append(
            {
                "base": name,
                "prose_bits": minilora.bits_per_byte(minilora.load_base(quantize=quantize)),
            }
        )
        print(f"base in {name:<7}{found[-1]['prose_bits']:.3f} bits a byte", flush=True)
    for seed in given.seeds:
        for method in ("LoRA", "QLoRA"):
            row = fine_tune(method, seed, given, held_out)
            found.append(row)
            print(
                f"{method:<6} seed {seed}  exact {row['exact_match']:.1%}  {row['prose_bits']:.3f} bits a byte",
                flush=True,
            )
    for method in ("LoRA", "QLoRA"):
        exact = [row["exact_match"] for row in found if row.get("method") == method]
        print(
            f"{method:<6} exact {statistics.mean(exact):.1%} ({min(exact):.1%} to {max(exact):.1%})"
        )
    save("quality", found, given)


if __name__ == "__main__":
    main()
