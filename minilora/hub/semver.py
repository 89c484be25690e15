"""Names and versions: ``naval@1.2.0``, and which stored version a shorter wish such as
``naval@1.2`` means.

A version is ``major.minor.patch`` (semver.org 2.0). For an adapter the three numbers say what a
user has to check again:

    major    another base, rank, targets or method    it may not load where the old one did
    minor    other data                               it loads, and answers differently
    patch    the same recipe run again                the same in intent

A pre-release (``1.2.0-rc.1``) comes before its release and is never meant by a shorter wish. Build
metadata (``1.2.0+nf4``) marks a compressed copy, which is meant only where it is named or where
nothing else is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
PREFIX = re.compile(r"\d{1,9}(\.\d{1,9})?")
PARTS = r"(?:0|[1-9]\d{0,8})"
SEMVER = re.compile(
    rf"({PARTS})\.({PARTS})\.({PARTS})(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
    r"(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
LEVELS = ("major", "minor", "patch")


@dataclass(frozen=True)
class Semver:
    """One version, in semver's order: a release stands after its pre-releases.

    >>> versions = "1.10.0", "1.9.0", "1.10.0-rc.2", "1.10.0+nf4"
    >>> sorted(versions, key=lambda text: Semver.parse(text).order)
    ['1.9.0', '1.10.0-rc.2', '1.10.0+nf4', '1.10.0']
    """

    major: int
    minor: int
    patch: int
    pre: str = ""
    build: str = ""

    @classmethod
    def parse(cls, text: str) -> Semver:
        """Read ``"1.2.0"``. Raises ``ValueError`` for any other form."""
        match = SEMVER.fullmatch(text)
        if match is None:
            raise ValueError(
                f"expected a version such as 1.2.0, got {text!r}: three numbers, semver.org"
            )
        major, minor, patch = map(int, match.groups()[:3])
        return cls(major, minor, patch, match[4] or "", match[5] or "")

    def __str__(self) -> str:
        numbers = f"{self.major}.{self.minor}.{self.patch}"
        return numbers + f"-{self.pre}" * bool(self.pre) + f"+{self.build}" * bool(self.build)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Without pre-release and build."""
        return self.major, self.minor, self.patch

    @property
    def order(self) -> tuple:
        """A key to sort by; a compressed copy comes before what it is a copy of, so that the newest
        is the original.
        """
        pre = tuple(
            (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in self.pre.split(".")
        )
        return (*self.numbers, not self.pre, pre if self.pre else (), not self.build, self.build)

    def bumped(self, level: str) -> Semver:
        """The next release of a level.

        >>> str(Semver(1, 2, 3).bumped("minor"))
        '1.3.0'
        """
        if level == "major":
            return Semver(self.major + 1, 0, 0)
        if level == "minor":
            return Semver(self.major, self.minor + 1, 0)
        return Semver(self.major, self.minor, self.patch + 1)

    def level_since(self, older: Semver) -> str:
        """Which number moved first since ``older``; ``"none"`` when all three are equal."""
        pairs = zip(LEVELS, self.numbers, older.numbers, strict=True)
        return next((level for level, new, old in pairs if new != old), "none")


def parse_spec(spec: str) -> tuple[str, str]:
    """``"naval@champion"`` as (name, wish); the wish is empty for a name alone. Raises
    ``ValueError``.

    >>> parse_spec("naval@1.2"), parse_spec("naval")
    (('naval', '1.2'), ('naval', ''))
    """
    name, at, wish = spec.partition("@")
    check_name(name)
    if at and not (PREFIX.fullmatch(wish) or SEMVER.fullmatch(wish) or ALIAS.fullmatch(wish)):
        raise ValueError(
            f"expected {name}@<version or alias>, {name}@1.2 or {name}@champion, got {spec!r}"
        )
    return name, wish


def check_name(name: str, whose: str = "an adapter") -> None:
    """Raise ``ValueError`` unless this can name an adapter, or a tenant."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"expected {whose}'s name (letters, digits, '.', '_', '-'; at most 64), got {name!r}"
        )


def newest(versions: Iterable[str], prefix: str = "") -> str | None:
    """The newest release whose numbers begin with ``prefix``; None where there is none.

    >>> newest(["1.2.0", "1.2.10", "1.3.0-rc.1"], "1.2"), newest(["1.2.0+nf4"]), newest([])
    ('1.2.10', '1.2.0+nf4', None)
    """
    wanted = tuple(map(int, prefix.split("."))) if prefix else ()
    fitting = [
        version
        for version in map(Semver.parse, versions)
        if not version.pre and version.numbers[: len(wanted)] == wanted
    ]
    return str(max(fitting, key=lambda version: version.order)) if fitting else None
