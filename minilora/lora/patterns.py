"""Names and patterns in a config: their checks, and the rules by which they match. No torch.

A list entry fits a module of that name or one that ends in ``.entry``. A string is a regular
expression for the whole path. A key of ``rank_pattern`` or ``alpha_pattern`` is a regular
expression for a path or for its end after a dot. All three are PEFT's rules
(``check_target_module_exists`` and ``get_pattern_key``); tests/lora/test_patterns.py compares them
over random paths and patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..checks import is_number

Patterns = str | Sequence[str]


def fits(name: str, patterns: Patterns) -> str | None:
    """The entry of a list, or the regular expression, that matches a path; None when none does.

    >>> fits("layers.0.q_proj", ["proj", "q_proj"]), fits("xq_proj", ["q_proj"])
    ('q_proj', None)
    >>> fits("layers.0.q_proj", r".*[.][qv]_proj")
    '.*[.][qv]_proj'
    """
    if isinstance(patterns, str):
        return patterns if re.fullmatch(patterns, name) else None
    return next((entry for entry in patterns if name == entry or name.endswith(f".{entry}")), None)


def fits_pattern(name: str, key: str) -> bool:
    """Whether a key of ``rank_pattern`` or ``alpha_pattern`` matches a path."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def first_fit(name: str, pattern: Mapping[str, Any], default: Any) -> Any:
    """The value of the first key that matches the path, or that is the path; else the default."""
    key = next((key for key in pattern if fits_pattern(name, key)), name)
    return pattern.get(key, default)


def is_all_linear(patterns: Patterns) -> bool:
    """Whether this is the word ``"all-linear"``, in any case of letters."""
    return isinstance(patterns, str) and patterns.lower() == "all-linear"


def in_layers(name: str, layers: int | Sequence[int] | None, before: Patterns | None) -> bool:
    """Whether a path lies in one of the layers.

    Its layer is the first number that follows a name (one of ``before``, if given).

    >>> [in_layers(f"model.layers.{i}.experts.2.up", [0, 2], None) for i in range(3)]
    [True, False, True]
    """
    if layers is None:
        return True
    names = [before] if isinstance(before, str) else before
    forms = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in names or ()] or [r".*?\.[^.]*\.(\d+)\."]
    match = next((match for form in forms if (match := re.match(form, name))), None)
    chosen = [layers] if isinstance(layers, int) else layers
    return match is not None and int(match.groups()[-1]) in chosen


def check_patterns(field: str, value: Patterns | None) -> str | tuple[str, ...]:
    """A pattern as given, or a list of names as a tuple; raise on anything else."""
    if isinstance(value, str):
        check_regex(field, value)
        return value
    if isinstance(value, Mapping) or not isinstance(value, Iterable | None):
        raise TypeError(f"{field} must be a list of names or one regular expression, got {value!r}")
    names = tuple(value or ())
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise TypeError(f"{field} must be names, got {bad[0]!r} among them")
    return names


def check_regex(field: str, pattern: str) -> None:
    """Raise unless ``pattern`` compiles."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{field}={pattern!r} is not a regular expression: {error}") from error


def check_values(
    field: str, values: Mapping[str, Any], check: Callable[[Any], None]
) -> dict[str, Any]:
    """A copy of a pattern's mapping; raise unless keys compile and values pass ``check``."""
    if not isinstance(values, Mapping | None):
        raise TypeError(f"{field} must map names to values, got {values!r}")
    for name, value in (values or {}).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{field} must have names as keys, got {name!r}")
        check_regex(field, name)
        try:
            check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{field}[{name!r}]: {error}") from error
    return dict(values or {})


def check_layers(layers: Any) -> int | tuple[int, ...] | None:
    """One layer, several as a tuple, or None for all (an empty list too, as in PEFT)."""
    several = layers if isinstance(layers, list | tuple | set | range) else [layers]
    if layers is None or not several:
        return None
    for layer in several:
        if not is_number(layer, int) or layer < 0:
            raise TypeError(f"layers_to_transform must be whole numbers from 0, got {layer!r}")
    return layers if isinstance(layers, int) else tuple(layers)
