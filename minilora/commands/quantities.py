"""Numbers and times as people type them, and as people read them."""

from __future__ import annotations

import argparse
import re

TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86400}
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


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``10h``, ``2d``.

    >>> duration("1.5h"), duration("45")
    (5400.0, 45.0)
    """
    parts = re.fullmatch(r"(\d+(?:\.\d*)?)([smhd]?)", text.strip())
    if parts is None:
        raise argparse.ArgumentTypeError(f"expected a time as 90s, 30m, 10h or 2d, got {text!r}")
    return float(parts[1]) * TIMES[parts[2] or "s"]


def in_words(seconds: float) -> str:
    """A time in the unit that suits.

    >>> in_words(5400), in_words(40), in_words(0.02)
    ('1.5 h', '40 s', '0.02 s')
    """
    unit = next((unit for unit in "dhm" if seconds >= 2 * TIMES[unit]), "s")
    unit = "h" if unit == "m" and seconds >= 3600 else unit
    return f"{seconds / TIMES[unit]:.3g} {'min' if unit == 'm' else unit}"
