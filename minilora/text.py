"""Text that every wing writes: columns, "did you mean", "and N more". No torch, no rich."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with every column as wide as its widest cell.

    >>> columns([("module", "r"), ("q_proj", "8")])
    ['module  r', 'q_proj  8']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def nearest(word: str, known: Iterable[str], most: int = 1, cutoff: float = 0.5) -> list[str]:
    """The known names most like ``word``, the nearest first, from a ratio ``cutoff`` (0 to 1) on.

    >>> nearest("q_porj", ["q_proj", "v_proj"])
    ['q_proj']
    """
    return difflib.get_close_matches(word, list(known), n=most, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.5) -> str:
    """``did you mean 'q_proj'?`` where a known name is near, ``otherwise`` where none is.

    >>> did_you_mean("lern", ["learn", "train"]), did_you_mean("§", ["learn"], "see --help")
    ("did you mean 'learn'?", 'see --help')
    """
    names = nearest(word, known, cutoff=cutoff)
    return f"did you mean {names[0]!r}?" if names else otherwise


def listed(items: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    """The first ``most`` items, and how many more there are.

    >>> listed(["a", "b", "c"], most=2), listed(["a", "b"])
    ('a; b; and 1 more', 'a; b')
    """
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *rest])
