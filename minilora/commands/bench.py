"""``minilora bench``: time everything beside the peers.

The benchmarks need the peers and stand beside the package, in a checkout of the repository.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ..text import did_you_mean
from .options import add_device_option

BENCHMARKS = (
    "forward",
    "train_step",
    "nf4",
    "memory",
    "generation",
    "serving",
    "scaling",
    "matrix",
)
CHECKOUT = Path(__file__).parents[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora bench``."""
    names = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="name", help=f"{names} (default: all)")
    add_device_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora bench``."""
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        known = f"there are {', '.join(BENCHMARKS)}"
        hint = did_you_mean(unknown[0], BENCHMARKS, known)
        raise ValueError(f"no benchmark is named {unknown[0]!r}; {hint}")
    if not (CHECKOUT / "benchmarks" / "__main__.py").exists():
        raise ValueError(
            "the benchmarks are part of the repository, not of the package: "
            "clone it, then make bench"
        )
    command = [sys.executable, "-m", "benchmarks", *options.names, "--device", options.device]
    return subprocess.call(command, cwd=CHECKOUT)
