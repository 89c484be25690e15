"""What half precision and four bits cost an adapter: exact match of the shipped base's naval code.

    python -m benchmarks.compression [--seeds 0 1 2] [--steps 1000] [--logs 1000]

A and B are trained in float32, pushed to a hub, compressed there and pulled again; 1,000 held-out
logs that no run trained on. Nothing is timed here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import minilora
from minilora import LoraConfig, data
from minilora.hub import Hub

from .common import Row, options, save

KINDS = ("fp16", "nf4")


def compress_one(seed: int, given: Any, folder: Path, held_out: data.Task) -> list[Row]:
    """Train one adapter, and judge it in float32 and in each compressed form."""
    torch.manual_seed(seed)
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16))
    task = data.naval_log(seed=seed)
    settings = {"steps": given.steps, "seed": seed, "validate_every": given.steps}
    minilora.train(model, task, **settings, progress=False)
    hub = Hub(folder / "hub")
    version = hub.push(f"naval{seed}", minilora.save_adapter(model, folder / "adapter"))
    stored = version.manifest.files["adapter_model.safetensors"][1]
    exact = minilora.exact_match(model, held_out.valid)
    rows: list[Row] = [{"seed": seed, "kind": "float32", "exact_match": exact, "bytes": stored}]
    for kind in KINDS:
        small = hub.compress(version.spec, kind)
        model = minilora.load_adapter(minilora.load_base(), hub.pull(small.spec), strict=True)
        cosines = [pair.cosine or 0.0 for pair in hub.compare(version.spec, small.spec).deltas]
        rows.append(
            {
                "seed": seed,
                "kind": kind,
                "exact_match": minilora.exact_match(model, held_out.valid),
                "bytes": small.manifest.files[f"{kind}.safetensors"][1],
                "least_cosine": min(cosines),
            }
        )
    return rows


def main() -> None:
    """Every seed; a line a form."""
    given = options(__doc__, seeds=[0, 1, 2], steps=1000, logs=1000)
    held_out = data.naval_log(1, given.logs, seed=99)
    rows: list[Row] = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows += compress_one(seed, given, Path(folder), held_out)
        for row in rows[-1 - len(KINDS) :]:
            exact, size = f"{row['exact_match']:.1%}", f"{row['bytes']:,} bytes"
            print(f"seed {seed}  {row['kind']:<8} exact {exact}  {size}", flush=True)
    save("compression", rows, given)


if __name__ == "__main__":
    main()
