"""Checks of numbers in a config: each ``check_…`` raises with the name and the value. No torch."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: object, kind: Any = int | float) -> bool:
    """Whether a value is of a kind of number; True and False are not numbers here.

    >>> is_number(0.5), is_number(0.5, int), is_number(True)
    (True, False, False)
    """
    return isinstance(value, kind) and not isinstance(value, bool)


def check_whole(name: str, value: object, smallest: int) -> None:
    """Raise unless a value is a whole number of at least ``smallest``.

    >>> check_whole("r", 0, 1)
    Traceback (most recent call last):
    ValueError: r must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise unless a value is a finite number strictly between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not low < value < high:
        raise ValueError(f"{name} must be a finite number between {low} and {high}, got {value}")


def check_positive(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless a value is a finite number above 0.

    >>> check_positive("norm", 0)
    Traceback (most recent call last):
    ValueError: norm must be a finite positive number, got 0
    """
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite positive number, got {value!r}")


def check_switch(name: str, value: object) -> None:
    """Raise unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
