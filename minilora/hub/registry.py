"""What the database says, one tenant at a time: which versions there are, what a name means, and
the rows of a new one.

Functions over an open connection; ``database.py`` says what a transaction promises, ``store.py``
puts them together.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text import did_you_mean
from .blobs import Blobs
from .manifest import Manifest
from .semver import PREFIX, newest, parse_spec

MANIFEST = "manifest.json"  # a version's manifest is a blob too, so that its hash is its address


@dataclass(frozen=True)
class Version:
    """One version as a hub has it. ``manifest``: what is known of it; ``digest``: the manifest's
    hash.

    >>> manifest = Manifest("naval", "1.0.0", "c0ffee", {}, {})
    >>> Version("default", manifest, "2cf2", ("champion",), pushed=0.0, used=0.0).spec
    'naval@1.0.0'
    """

    tenant: str
    manifest: Manifest
    digest: str
    aliases: tuple[str, ...]
    pushed: float
    used: float

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The number."""
        return self.manifest.version

    @property
    def spec(self) -> str:
        """``naval@1.2.0``."""
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> tuple[str, str, str]:
        """The row's primary key."""
        return self.tenant, self.name, self.version


@dataclass(frozen=True)
class Event:
    """Who did what to an adapter, and when (seconds since 1970)."""

    at: float
    who: str
    name: str
    what: str


def versions(
    db: sqlite3.Connection, tenant: str, name: str | None = None, number: str | None = None
) -> list[Version]:
    """All versions of one name, or of all, by name and in the order of the pushes.

    Raises ``ValueError`` on a damaged row.
    """
    aliases: dict[tuple[str, str], list[str]] = {}
    for owner, alias, version in db.execute(
        "select name, alias, version from alias where tenant = ? and name = coalesce(?, name)"
        " order by alias",
        (tenant, name),
    ):
        aliases.setdefault((owner, version), []).append(alias)
    rows = db.execute(
        "select name, version, manifest, digest, pushed, used from version where tenant = ?"
        " and name = coalesce(?, name) and version = coalesce(?, version) order by name, pushed",
        (tenant, name, number),
    )
    return [
        Version(
            tenant,
            Manifest.parse(text),
            digest,
            tuple(aliases.get((owner, version), ())),
            pushed,
            used,
        )
        for owner, version, text, digest, pushed, used in rows
    ]


def find(db: sqlite3.Connection, tenant: str, spec: str) -> Version:
    """The version that a wish means. Raises ``ValueError`` that says what there is instead."""
    name, wish = parse_spec(spec)
    mine = (tenant, name)
    numbers = [
        number
        for (number,) in db.execute(
            "select version from version where tenant = ? and name = ? order by pushed", mine
        )
    ]
    if not numbers:
        known = db.execute("select distinct name from version where tenant = ?", (tenant,))
        hint = did_you_mean(name, [each for (each,) in known], "minilora hub list shows all")
        raise ValueError(f"no adapter {name!r} in this hub: {hint}")
    aliases = dict(
        db.execute("select alias, version from alias where tenant = ? and name = ?", mine)
    )
    if not wish or PREFIX.fullmatch(wish):
        number = newest(numbers, wish)
    else:
        number = aliases.get(wish, wish)
    if number not in numbers:
        there = ", ".join([*numbers, *sorted(aliases)])
        raise ValueError(f"no {spec!r} in this hub; {name} has {there}")
    return versions(db, tenant, name, number)[0]


def insert(
    db: sqlite3.Connection,
    blobs: Blobs,
    tenant: str,
    who: str,
    text: str,
    files: Mapping[str, bytes],
) -> None:
    """Blobs, then rows, in the caller's transaction: it holds the write lock, so no ``gc`` comes in
    between.

    Raises ``ValueError`` for a version that exists, or a quota that would overflow.
    """
    manifest, now = Manifest.parse(text), time.time()
    check_quota(db, tenant, manifest.bytes)
    contents = {**files, MANIFEST: text.encode()}
    shas = {path: blobs.put(content) for path, content in contents.items()}
    for path, sha in shas.items():
        db.execute("insert or ignore into blob values (?, ?)", (sha, len(contents[path])))
    key, digest = (tenant, manifest.name, manifest.version), shas[MANIFEST]
    try:
        db.execute(
            "insert into version values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, manifest.content, digest, text, manifest.bytes, now, now),
        )
    except sqlite3.IntegrityError:
        raise ValueError(
            f"{manifest.name}@{manifest.version} exists, and a version never changes"
        ) from None
    for path, sha in shas.items():
        db.execute("insert into file values (?, ?, ?, ?, ?)", (*key, path, sha))
    note(db, tenant, who, manifest.name, f"push {manifest.version}")


def check_quota(db: sqlite3.Connection, tenant: str, more: int) -> None:
    """Raise ``ValueError`` unless one more version of ``more`` bytes fits the tenant's quota."""
    limits = db.execute("select adapters, bytes from quota where tenant = ?", (tenant,)).fetchone()
    count, total = db.execute(
        "select count(*), coalesce(sum(bytes), 0) from version where tenant = ?", (tenant,)
    ).fetchone()
    for what, limit, would_be in zip(
        ("adapters", "bytes"), limits or (None, None), (count + 1, total + more), strict=True
    ):
        if limit is not None and would_be > limit:
            raise ValueError(
                f"the quota of {tenant!r} is {limit:,} {what}, and this push would make it "
                f"{would_be:,}: prune some"
            )


def move_alias(
    db: sqlite3.Connection, target: Version, alias: str, expected: Any, who: str
) -> str | None:
    """Point an alias to a version if it now has the ``expected`` number; returns the old number.

    ``expected`` is a number, None (the alias is new), or ``...`` for whatever it has.
    """
    row = db.execute(
        "select version from alias where tenant = ? and name = ? and alias = ?",
        (target.tenant, target.name, alias),
    ).fetchone()
    old = row[0] if row else None
    if expected is not ... and expected != old:
        raise ValueError(
            f"{target.name}@{alias} is {old or 'not set'}, expected {expected or 'not set'}: "
            "somebody moved it; look again, then decide"
        )
    db.execute(
        "insert or replace into alias values (?, ?, ?, ?)", (*target.key[:2], alias, target.version)
    )
    note(db, target.tenant, who, target.name, f"{alias} {old or '-'} -> {target.version}")
    return old


def note(db: sqlite3.Connection, tenant: str, who: str, name: str, what: str) -> None:
    """Write down who did what."""
    values = time.time(), tenant, who, name, what
    db.execute("insert into event (at, tenant, who, name, what) values (?, ?, ?, ?, ?)", values)


def last_event(db: sqlite3.Connection) -> int:
    """The number of the last thing that was done to the hub, by any tenant; every push, import,
    alias and prune is one, so as long as it stands there are the same versions."""
    (last,) = db.execute("select coalesce(max(id), 0) from event").fetchone()
    return last


def pruned(db: sqlite3.Connection, tenant: str, name: str) -> set[str]:
    """The numbers of versions that were here once."""
    done = [event.what.split() for event in events(db, tenant, name)]
    return {words[1] for words in done if words[0] == "prune" and len(words) == 2}  # not an alias


def events(db: sqlite3.Connection, tenant: str, name: str | None = None) -> list[Event]:
    """What was done, the oldest first."""
    rows = db.execute(
        "select at, who, name, what from event"
        " where tenant = ? and name = coalesce(?, name) order by id",
        (tenant, name),
    )
    return [Event(*row) for row in rows]
