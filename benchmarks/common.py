"""How everything here is timed: contestants take turns, and ratios of the same round are what counts.

A machine that slows down slows all contestants of a round, so the median over rounds of ``a / b`` holds where times do not.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def measure(runs: dict[str, Callable[[], Any]], repeats: int, calls: int = 1, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds a call, ``repeats`` values for each contestant, in turns; two rounds before that warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            for _ in range(calls):
                run()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat >= 2:
                times[name].append((time.perf_counter() - started) / calls)
    return times


def ratios(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Quartiles of a / b, round by round: (lower, median, upper)."""
    low, middle, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    return low, middle, high


def machine(device: str = "cpu", **versions: Any) -> str:
    """One line about where this ran."""
    found = ", ".join(f"{name} {module.__version__}" for name, module in {"torch": torch, **versions}.items())
    return f"{platform.machine()}, {device}, {torch.get_num_threads()} threads; {found}"
