"""Numbers and times as people type them."""

from __future__ import annotations

import argparse
import re

from ..text import TIMES

AMOUNTS = {"": 1, "%": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def amount(text: str) -> float:
    """The number of ``2.5``, ``1e9``, ``3k``, ``300M``, ``2B``, ``70%``.

    >>> amount("2B"), amount("3k"), amount("1e9"), amount("70%")
    (2000000000.0, 3000.0, 1000000000.0, 0.7)
    """
    parts = re.fullmatch(r"([^%kMBT]+)([%kMBT]?)", text.strip())
    try:
        if parts is None:
            raise ValueError(text)
        return float(parts[1]) * AMOUNTS[parts[2]] / (100 if parts[2] == "%" else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number as 0.7, 70%, 2e9, 300M or 2B, got {text!r}"
        ) from None


def duration(text: str, unit: str = "s") -> float:
    """Seconds of ``90s``, ``30m``, ``10h``, ``2d``, ``1w``; a bare number is in ``unit``.

    >>> duration("1.5h"), duration("45")
    (5400.0, 45.0)
    """
    parts = re.fullmatch(r"(\d+(?:\.\d*)?)([smhdw]?)", text.strip())
    if parts is None or not (unit := parts[2] or unit):
        raise argparse.ArgumentTypeError(f"expected a time as 90s, 30m, 10h or 2d, got {text!r}")
    return float(parts[1]) * TIMES[unit]


def duration_with_unit(text: str) -> float:
    """The same, and a bare number is refused.

    >>> duration_with_unit("30d")
    2592000.0
    """
    return duration(text, unit="")
