"""How everything here is timed, compared and kept.

Contestants take turns, and ratios of the same round are what counts: a machine that slows down slows all contestants of a
round, so the median over rounds of ``a / b`` holds where times do not. What is found goes to ``results/<device>/<name>.json``;
``report.py`` makes the tables and figures from there.
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
    runs: Mapping[str, Callable[[], Any]], seconds: float = 1.0, least: int = 7, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds a call for each contestant, in turns, until ``seconds`` are over and ``least`` rounds are done.

    Two rounds before that warm up; they also tell how many calls a contestant needs to fill a millisecond.
    """
    calls, times = dict.fromkeys(runs, 1), {name: [] for name in runs}  # type: dict[str, int], dict[str, list[float]]
    started, rounds = time.perf_counter(), -2
    while rounds < least or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            begun = time.perf_counter()
            for _ in range(calls[name]):
                run()
            if device != "cpu":
                torch.cuda.synchronize()
            took = (time.perf_counter() - begun) / calls[name]
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
    """One row a contestant: its setting, its median in seconds, and the quartiles of its ratio to the yardstick."""
    return [
        {
            **setting,
            "contestant": name,
            "seconds": statistics.median(found),
            "ratio": dict(
                zip(("low", "median", "high"), ratios(found, times[yardstick]), strict=True)
            ),
            "rounds": len(found),
        }
        for name, found in times.items()
    ]


def options(description: str | None, **more: Any) -> argparse.Namespace:
    """``--device``, ``--threads``, ``--out`` and whatever else, by name and default; sets the threads."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    for name, default in {"device": "cpu", "threads": 2, "out": str(RESULTS), **more}.items():
        listed = isinstance(default, list)
        kind, flag = type(default[0] if listed else default), f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag,
            type=kind,
            default=default,
            nargs="+" if listed else None,
            help="default: %(default)s",
        )
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


def machine(device: str = "cpu", *packages: str) -> dict[str, Any]:
    """Where this ran: processor or GPU, threads, versions."""
    found = {name: version(name) for name in ("torch", *packages) if find_spec(name)}
    name = (
        torch.cuda.get_device_name()
        if device != "cpu"
        else f"{platform.system()} {platform.machine()}"
    )
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": found,
    }


def save(name: str, found: Sequence[Row], settings: argparse.Namespace, *packages: str) -> Path:
    """Write what was found, and where and how, to ``<out>/<device>/<name>.json``."""
    kind = settings.device.split(":")[0]
    kept = {key: value for key, value in vars(settings).items() if key not in ("out", "device")}
    content = {
        "benchmark": name,
        "machine": machine(settings.device, *packages),
        "settings": kept,
        "rows": list(found),
    }
    path = Path(settings.out) / kind / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rounded(content), indent=1) + "\n")
    return path


def rounded(value: Any) -> Any:
    """The same with four significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
