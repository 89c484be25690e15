"""Text that every wing writes: columns, bytes and times, "did you mean", "and N more"; its hash.

Tables: ``columns`` makes lines that can be stored, compared and piped; rich's ``Table`` is for a
terminal, where cells wrap to its width or have a style (the course, the plan, the hub's lists).

No torch, no rich.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)
TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds, by a time's letter
LETTER = 4  # tokens that a letter may take: in UTF-8 it has up to so many bytes


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with every column as wide as its widest cell.

    >>> columns([("module", "r"), ("q_proj", "8")])
    ['module  r', 'q_proj  8']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def size_text(count: float) -> str:
    """Bytes in decimal units.

    >>> size_text(86_020), size_text(1_500_000), size_text(25e9), size_text(16e12)
    ('86.0 kB', '1.5 MB', '25.0 GB', '16.0 TB')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def time_text(seconds: float) -> str:
    """Seconds in the unit that suits.

    >>> time_text(5400), time_text(40), time_text(0.02)
    ('1.5 h', '40 s', '0.02 s')
    """
    unit = next((unit for unit in "dhm" if seconds >= 2 * TIMES[unit]), "s")
    unit = "h" if unit == "m" and seconds >= TIMES["h"] else unit
    return f"{seconds / TIMES[unit]:.3g} {'min' if unit == 'm' else unit}"


def hash_of_texts(texts: Iterable[str | bytes]) -> bytes:
    """SHA-256 of some texts in UTF-8, each with its length before it, so that no border can move.

    >>> hash_of_texts(["a", "bc"]) == hash_of_texts(["ab", "c"])
    False
    """
    hashed = hashlib.sha256()
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.digest()


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


def beyond(before: str, after: str) -> str:
    """What the text of some tokens says beyond that of the first few of them.

    Not ``after[len(before):]``: half a letter decodes to U+FFFD, and the whole one takes its place.

    >>> beyond("Hull", "Hull 90%"), beyond("a\\ufffd", "a🙂b")
    (' 90%', '🙂b')
    """
    shared = len(before)
    while not after.startswith(before[:shared]):
        shared -= 1
    return after[shared:]


def names_other_libraries_use(**ours: str) -> Callable[[Class], Class]:
    """A decorator of a dataclass: an unknown argument is refused with the name that is ours.

    ``ours`` maps another library's name to the field here; for a typo the nearest field is named.

    >>> from dataclasses import dataclass
    >>> @names_other_libraries_use(learning_rate="lr")
    ... @dataclass
    ... class Config:
    ...     lr: float = 1e-3
    >>> Config(learning_rate=1e-4)
    Traceback (most recent call last):
    TypeError: Config has no 'learning_rate': did you mean 'lr'?
    """

    def decorate(cls: Class) -> Class:
        dataclass: Any = cls
        init = dataclass.__init__

        @functools.wraps(init)
        def checked(self: Any, *values: Any, **settings: Any) -> None:
            check_names(cls, settings, ours)
            init(self, *values, **settings)

        dataclass.__init__ = checked
        return cls

    return decorate


def check_names(cls: type, settings: Mapping[str, object], ours: Mapping[str, str]) -> None:
    """Raise ``TypeError`` for an argument that a dataclass has no field for."""
    fields = [field.name for field in dataclasses.fields(cls)]
    for name in settings.keys() - set(fields):
        known = f"known are {', '.join(fields)}"
        hint = did_you_mean(ours.get(name, name), fields, known)
        raise TypeError(f"{cls.__name__} has no {name!r}: {hint}")
