"""Keeping a hub sound: what is damaged, what nothing points to, and what nobody has asked for.

``verify`` reads everything and changes nothing. ``gc`` and ``prune`` delete, inside one transaction
that holds the same write lock as a push: a blob that a push is about to name cannot be taken for an
orphan, because no push runs meanwhile.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .blobs import Blobs, DamageError, digest
from .manifest import Manifest
from .registry import MANIFEST, note, versions


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: which version (or ``"hub"``), and what about it.

    >>> print(Damage("naval@1.0.0", "adapter_config.json is missing"))
    naval@1.0.0: adapter_config.json is missing
    """

    spec: str
    problem: str

    def __str__(self) -> str:
        return f"{self.spec}: {self.problem}"


@dataclass(frozen=True)
class Swept:
    """What ``gc`` removed: files and their bytes."""

    files: int
    bytes: int


def damages(db: sqlite3.Connection, blobs: Blobs) -> Iterator[Damage]:
    """Everything that is not as it was stored, of all tenants: the database's pages, its rows,
    every blob.
    """
    for (line,) in db.execute("pragma integrity_check"):
        if line != "ok":
            yield Damage("hub", f"the database: {line}")
    for table, *_ in db.execute("pragma foreign_key_check"):
        yield Damage("hub", f"a row of {table} points to something that is not there")
    problems = {sha: blobs.problem(sha) for (sha,) in db.execute("select distinct sha from file")}
    rows = db.execute(
        "select tenant, name, version, content, digest, manifest, bytes from version"
        " order by tenant, name, version"
    )
    for tenant, name, version, content, hashed, text, size in rows.fetchall():
        spec = f"{name}@{version}"
        files = dict(
            db.execute(
                "select path, sha from file where tenant = ? and name = ? and version = ?",
                (tenant, name, version),
            )
        )
        yield from (Damage(spec, problems[sha]) for sha in files.values() if problems[sha])
        if digest(text.encode()) != hashed or files.pop(MANIFEST, None) != hashed:
            yield Damage(spec, "its manifest in the database is not the one that was stored")
            continue
        manifest = Manifest.parse(text)
        known = {path: sha for path, (sha, _) in manifest.files.items()}
        row = name, version, content, size, files
        if row != (manifest.name, manifest.version, manifest.content, manifest.bytes, known):
            yield Damage(spec, "its row in the database does not say what its manifest says")


def sweep(db: sqlite3.Connection, blobs: Blobs, adapters: Path) -> Swept:
    """Remove blobs that no version has, what killed writers left, and folders of versions that are
    gone.
    """
    db.execute("delete from blob where sha not in (select sha from file)")
    kept = {sha for (sha,) in db.execute("select sha from blob")}
    digests = {hashed[:12] for (hashed,) in db.execute("select digest from version")}
    removed = []
    for path in blobs.files():
        if path.name not in kept:
            removed.append(path.stat().st_size)
            path.unlink()
    for folder in sorted(adapters.glob("*")):
        if folder.is_dir() and folder.name.rpartition("-")[2] not in digests:
            removed += [file.stat().st_size for file in folder.iterdir()]
            shutil.rmtree(folder)
    return Swept(len(removed), sum(removed))


def prune_unused(db: sqlite3.Connection, tenant: str, seconds: float, who: str) -> list[str]:
    """Delete the tenant's versions that nobody pulled or pushed for so long and no alias names;
    returns them.
    """
    pruned = []
    for each in versions(db, tenant):
        if each.used < time.time() - seconds and not each.aliases:
            # whatever is said here, the foreign key refuses to delete what an alias names
            db.execute(
                "delete from version where tenant = ? and name = ? and version = ?", each.key
            )
            note(db, tenant, who, each.name, f"prune {each.version}")
            pruned.append(each.spec)
    return pruned


def problem_of(blobs: Blobs, manifest: Manifest, hashed: str) -> str:
    """What is wrong with one version's files; empty when nothing is."""
    for sha in (hashed, *(sha for sha, _ in manifest.files.values())):
        try:
            blobs.read(sha)
        except DamageError as error:
            return str(error)
    return ""
