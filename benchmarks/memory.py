"""What does training hold in memory? Every method, by tensor and as a whole process, ours and PEFT's.

    python -m benchmarks.memory [--width 768] [--layers 6] [--device cpu]

By tensor: the second training step, watched by ``minilora.ledger.measure``. Whole process: a fresh one for each method, and how
far its resident memory rose above what it held when all was imported and nothing built. (It has to build the model too: for
QLoRA the floats come first, since they are random here; ``load_base(quantize="nf4")`` does better with a real folder.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from minilora import ledger

from . import models
from .common import Row, options, save


def high_water() -> int | None:
    """Most bytes of memory this process ever held, where the system tells (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(
        next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[
            1
        ]
    )


def measure_one(method: str, width: int, layers: int, rows: int, time: int, device: str) -> Row:
    """One method's row, in this process."""
    before = high_water()
    ids = torch.randint(0, 1536, (rows, time + 1), device=device)
    model = models.build(method, models.llama(width, layers, device))
    step, optimizer = models.step_of(model, ids)
    step()
    step()
    after = high_water()
    found = ledger.measure(step, model, optimizer)
    process = None if before is None or after is None else after - before
    parts = {"resident": found.resident, "at_peak": found.at_peak}
    return {"method": method, **parts, "peak": found.peak, "process": process}


def main() -> None:
    """A process for each method."""
    given = options(__doc__, width=768, layers=6, batch=4, time=128, only="")
    if given.only:
        print(
            json.dumps(
                measure_one(
                    given.only, given.width, given.layers, given.batch, given.time, given.device
                )
            )
        )
        return
    found: list[Row] = []
    print(
        f"MB, {given.layers} layers, d={given.width}, r=8 on all Linears     resident    peak  process"
    )
    for method in models.METHODS:
        flags = [
            f"--{name}={getattr(given, name)}"
            for name in ("width", "layers", "batch", "time", "device", "threads")
        ]
        command = [sys.executable, "-m", "benchmarks.memory", f"--only={method}", *flags]
        row = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
                -1
            ]
        )
        found.append(row)
        process = "" if row["process"] is None else f"{row['process'] / 1e6:9.1f}"
        print(
            f"{method:<44}{sum(row['resident'].values()) / 1e6:9.1f}{row['peak'] / 1e6:8.1f}{process}",
            flush=True,
        )
    save("memory", found, given, "peft", "bitsandbytes")


if __name__ == "__main__":
    main()
