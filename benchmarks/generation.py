"""How fast does a text grow? ``generate`` here and in transformers, on the same folder.

    python -m benchmarks.generation [--rows 1 16] [--new 64] [--folder smollm2 --name SmolLM2]

Greedy, a prompt of 40 tokens a row, no end token: in floats both make the same tokens, which is
asserted before anything is timed. In four bits the base's Linears are NF4, multiplied by the
compiled kernel where it was built (``kernel`` in the results says which instructions it uses). Its
logits are asserted equal to those of the dequantized base within 1%, for the whole prompt and for
one token a row, which alone is few rows; its tokens may be others.

``wall`` is what a user waits for, on as many threads as the run has. ``cpu`` is the processor time
of the calling thread, on one thread: it holds on a busy machine too. Results of earlier folders
stay in the file.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import minilora
from minilora.nf4 import kernel

from .common import kept_rows, measure, options, rows_of, save
from .tables import counted

PEER, FLOATS, FOUR_BITS = "transformers", "minilora", "minilora, NF4"
SHIPPED = Path(minilora.__file__).parent / "model" / "base"
PROMPT = 40


def contestants(folder: Path, ids: Tensor, new: int) -> dict[str, Callable[[], Tensor]]:
    """``generate`` of each, on the same weights; the answers are compared first."""
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, nf4 = minilora.load_base(folder), minilora.load_base(folder, quantize="nf4")
    floats = minilora.dequantize_base(copy.deepcopy(nf4))
    with torch.no_grad():
        for part in (ids, ids[:, :1]):
            torch.testing.assert_close(nf4(part), floats(part), rtol=1e-2, atol=1e-2)
    mask, length = torch.ones_like(ids), {"max_new_tokens": new, "min_new_tokens": new}
    greedy = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": mask}
    runs = {
        PEER: lambda: theirs.generate(ids, **length, **greedy),
        FLOATS: lambda: ours.generate(ids, new),
        FOUR_BITS: lambda: nf4.generate(ids, new),
    }
    assert torch.equal(runs[PEER](), runs[FLOATS]()), "the two continue the prompts differently"
    return runs


def main() -> None:
    """Every number of rows: processor time on one thread, then time on all of them."""
    shape: dict[str, Any] = {"rows": [1, 16], "new": 64, "seconds": 4.0, "clocks": ["cpu", "wall"]}
    settings = options(__doc__, **shape, folder=str(SHIPPED), name="shipped base")
    transformers.logging.set_verbosity_error()
    kept = kept_rows("generation", settings)
    results = [row for row in kept if row["base"] != settings.name]
    for rows in settings.rows:
        ids = torch.randint(3, 1500, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
        runs = contestants(Path(settings.folder), ids, settings.new)
        for clock in settings.clocks:
            threads = 1 if clock == "cpu" else settings.threads
            torch.set_num_threads(threads)
            ticks = time.thread_time if clock == "cpu" else time.perf_counter
            times = measure(runs, settings.seconds, 7, settings.device, ticks)
            setting = {"base": settings.name, "rows": rows, "clock": clock, "threads": threads}
            measured = rows_of(times, PEER, **setting, new=settings.new)
            for row in measured:
                row["speed"] = {end: 1 / row["ratio"][end] for end in ("low", "median", "high")}
                row["tokens_a_second"] = rows * settings.new / row["seconds"]
                size = f"{counted(rows, 'row')}, {clock}, {counted(threads, 'thread')}"
                name = f"{settings.name}, {size}"
                speed = f"{row['tokens_a_second']:>9,.0f} tokens/s"
                print(f"{name:<45}{row['contestant']:<16}{speed}{row['speed']['median']:>7.2f} ×")
            results += measured
    settings.kernel = kernel.status().variant
    settings.folder = Path(settings.folder).name
    save("generation", results, settings, "transformers")


if __name__ == "__main__":
    main()
