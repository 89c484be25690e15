"""How every benchmark is timed, compared and kept.

Contestants take turns, and only ratios of the same round count: a machine that slows down slows all
contestants of a round, so the median over rounds of ``a / b`` holds where times do not. Results go
to ``results/<device>/<name>.json``; ``report.py`` makes the tables and figures from them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minilora.files import write_text

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def measure(
    runs: Mapping[str, Callable[[], Any]],
    seconds: float = 1.0,
    least: int = 7,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call for each contestant, in turns, for ``seconds`` and at least ``least`` rounds.

    Two rounds before that warm up, and find how many calls a contestant needs to fill a
    millisecond. ``clock``: ``time.thread_time`` takes the processor's time on one thread instead.
    """
    calls = dict.fromkeys(runs, 1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    started, rounds = time.perf_counter(), -2
    while rounds < least or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            begun = clock()
            for _ in range(calls[name]):
                run()
            if device != "cpu":
                torch.cuda.synchronize()
            took = (clock() - begun) / calls[name]
            if rounds >= 0:
                times[name].append(took)
            else:
                calls[name] = min(1000, max(1, math.ceil(1e-3 / took)))
        rounds += 1
    return times


def ratios(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of a / b, round by round: (lower, median, upper)."""
    low, middle, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    return low, middle, high


def rows_of(times: Mapping[str, Sequence[float]], yardstick: str, **setting: Any) -> list[Row]:
    """One row a contestant: setting, median seconds, quartiles of its ratio to the yardstick."""
    return [
        {
            **setting,
            "contestant": name,
            "seconds": statistics.median(seconds),
            "ratio": quartiles(seconds, times[yardstick]),
            "rounds": len(seconds),
        }
        for name, seconds in times.items()
    ]


def quartiles(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """The quartiles of ``ratios`` by name."""
    return dict(zip(("low", "median", "high"), ratios(a, b), strict=True))


def options(description: str | None, **more: Any) -> argparse.Namespace:
    """Parse ``--device``, ``--threads``, ``--out`` and ``more`` (name=default); set the threads."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    for name, default in {"device": "cpu", "threads": 2, "out": str(RESULTS), **more}.items():
        listed = isinstance(default, list)
        kind, flag = type(default[0] if listed else default), f"--{name.replace('_', '-')}"
        many = "+" if listed else None
        parser.add_argument(
            flag, type=kind, default=default, nargs=many, help="default: %(default)s"
        )
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    return settings


def machine(device: str = "cpu", *packages: str) -> dict[str, Any]:
    """Where this ran: processor or GPU, threads, versions."""
    processor = f"{platform.system()} {platform.machine()}"
    return {
        "device": processor if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", *packages) if find_spec(name)},
    }


def save(name: str, rows: Sequence[Row], settings: argparse.Namespace, *packages: str) -> Path:
    """Write the rows, and where and how they were measured, to ``<out>/<device>/<name>.json``."""
    kind = settings.device.split(":")[0]
    kept = {key: value for key, value in vars(settings).items() if key not in ("out", "device")}
    content = {
        "benchmark": name,
        "machine": machine(settings.device, *packages),
        "settings": kept,
        "rows": list(rows),
    }
    path = Path(settings.out) / kind / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rounded(content), indent=1) + "\n")
    return path


def kept_rows(name: str, settings: argparse.Namespace) -> list[Row]:
    """The rows that earlier calls have kept, so that a benchmark goes on where it was."""
    file = Path(settings.out) / settings.device.split(":")[0] / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []


def rounded(value: Any) -> Any:
    """The same with four significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
