"""``minilora zoo``: bugs of LoRA libraries: the wrong line, and the test that catches it."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora zoo``."""
    parser.add_argument("name", nargs="?", help="one of them (default: list all)")


def run(options: argparse.Namespace) -> int:
    """``minilora zoo``."""
    from ..bugs import release

    name = options.name
    print(release.describe_all() if name is None else release.describe(release.find_bug(name)))
    return 0
