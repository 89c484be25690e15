"""What does training hold in memory? Every method, ours and PEFT's, by tensor and as a process.

    python -m benchmarks.memory [--width 768] [--layers 6] [--device cpu]

By tensor: the third training step, as ``minilora.ledger.measure`` sees it. Whole process: a fresh
one for each method, and how far its resident memory rose above that of the imports alone. (It has
to build the model too. For QLoRA the floats come first, since they are random here;
``load_base(quantize="nf4")`` does better with a real folder.)
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
    lines = status.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure_one(method: str, width: int, layers: int, rows: int, time: int, device: str) -> Row:
    """One method's row, in this process."""
    before = high_water()
    ids = torch.randint(0, 1536, (rows, time + 1), device=device)
    model = models.build(method, models.llama(width, layers, device))
    step, optimizer = models.step_of(model, ids)
    step()
    step()
    after = high_water()
    measured = ledger.measure(step, model, optimizer)
    process = None if before is None or after is None else after - before
    parts = {"resident": measured.resident, "at_peak": measured.at_peak}
    return {"method": method, **parts, "peak": measured.peak, "process": process}


def main() -> None:
    """A process for each method."""
    settings = options(__doc__, width=768, layers=6, batch=4, time=128, only="")
    width, layers, time = settings.width, settings.layers, settings.time
    if settings.only:
        row = measure_one(settings.only, width, layers, settings.batch, time, settings.device)
        print(json.dumps(row))
        return
    rows: list[Row] = []
    head = f"MB, {layers} layers, d={width}, r=8 on all Linears"
    print(f"{head:<44}{'resident':>9}{'peak':>8}{'process':>9}")
    names = ("width", "layers", "batch", "time", "device", "threads")
    flags = [f"--{name}={getattr(settings, name)}" for name in names]
    for method in models.METHODS:
        command = [sys.executable, "-m", "benchmarks.memory", f"--only={method}", *flags]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row = json.loads(output.splitlines()[-1])
        rows.append(row)
        resident, peak = sum(row["resident"].values()) / 1e6, row["peak"] / 1e6
        process = "" if row["process"] is None else f"{row['process'] / 1e6:9.1f}"
        print(f"{method:<44}{resident:9.1f}{peak:8.1f}{process}", flush=True)
    save("memory", rows, settings, "peft", "bitsandbytes")


if __name__ == "__main__":
    main()
