"""What four bits cost in quality: the shipped base learns naval code with LoRA and with QLoRA, several seeds each.

    python -m benchmarks.qlora_quality [--seeds 0 1 2] [--steps 1000] [--target q_proj v_proj]

Exact match on 1,000 held-out logs that no run trained on, bits a byte on held-out prose, and what quantizing alone costs.
Nothing is timed here.
"""

from __future__ import annotations

import argparse
import statistics

import torch

import minilora
from minilora import LoraConfig, data


def run(method: str, seed: int, options: argparse.Namespace, held_out: data.Task) -> tuple[float, float]:
    """(exact match, bits a byte) after a fine-tune."""
    torch.manual_seed(seed)
    model = minilora.load_base(quantize="nf4" if method == "QLoRA" else None)
    targets = "all-linear" if options.target == ["all-linear"] else options.target
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    minilora.train(model, data.naval_log(seed=seed), steps=options.steps, seed=seed, validate_every=100, progress=False)
    return minilora.exact_match(model, held_out.valid), minilora.bits_per_byte(model)


def main() -> None:
    """Run every seed of both, and print means and ranges."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--target", nargs="+", default=["q_proj", "v_proj"], help="modules to adapt, or all-linear")
    parser.add_argument("--method", nargs="+", default=["LoRA", "QLoRA"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held_out = data.naval_log(1, 1000, seed=99)
    for name, quantize in (("floats", None), ("nf4", "nf4"), ("fp4", "fp4"), ("int4", "int4")):
        print(f"base in {name:<7}{minilora.bits_per_byte(minilora.load_base(quantize=quantize)):.3f} bits a byte", flush=True)
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in options.method}
    for seed in options.seeds:
        for method, results in found.items():
            results.append(run(method, seed, options, held_out))
            print(f"{method:<6} seed {seed}  exact {results[-1][0]:.1%}  {results[-1][1]:.3f} bits a byte", flush=True)
    for method, results in found.items():
        exact, bits = zip(*results, strict=True)
        spread = f"{min(exact):.1%} to {max(exact):.1%}"
        print(f"{method:<6} exact {statistics.mean(exact):.1%} ({spread}), bits a byte {statistics.mean(bits):.3f}")


if __name__ == "__main__":
    main()
