"""Checks of the numbers in a method's config: each raises with the name and the value. No torch."""

from __future__ import annotations

import math


def check_whole(name: str, value: object, smallest: int) -> None:
    """Raise unless a value is a whole number of at least ``smallest``."""
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


def check_switch(name: str, value: object) -> None:
    """Raise unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
