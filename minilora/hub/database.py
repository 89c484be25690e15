"""The hub's SQLite file: its tables.

    version   name, version, the manifest, the identity of the content
    blob      stored bytes by their hash;  file: which of them a version has, under which path
    alias     names that move: champion -> 1.2.0
    event     who did what, when;  quota: how many versions and bytes a tenant may have

``minilora/database.py`` says how the file is opened and what a transaction promises.
"""

from __future__ import annotations

import errno
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path

from ..database import Database

FILE = "hub.sqlite"
MIGRATIONS = (
    """
    create table blob (sha text primary key, bytes integer not null) without rowid;
    create table version (
        tenant text not null, name text not null, version text not null,
        content text not null, digest text not null references blob (sha), manifest text not null,
        bytes integer not null, pushed real not null, used real not null,
        primary key (tenant, name, version)
    ) without rowid;
    create table file (
        tenant text not null, name text not null, version text not null, path text not null,
        sha text not null references blob (sha),
        primary key (tenant, name, version, path),
        foreign key (tenant, name, version) references version on delete cascade
    ) without rowid;
    create index file_by_sha on file (sha);
    create table alias (
        tenant text not null, name text not null, alias text not null, version text not null,
        primary key (tenant, name, alias),
        foreign key (tenant, name, version) references version on delete restrict
    ) without rowid;
    create table quota (
        tenant text primary key, adapters integer, bytes integer
    ) without rowid;
    create table event (
        id integer primary key, at real not null, tenant text not null, who text not null,
        name text not null, what text not null
    );
    """,
)


def database(folder: Path) -> Database:
    """The database of the hub in a folder."""
    return Database(folder / FILE, MIGRATIONS, noun="hub")


def reading(folder: Path) -> AbstractContextManager[sqlite3.Connection]:
    """``Database.reading`` of a hub. Raises ``FileNotFoundError`` where there is none."""
    if not (folder / FILE).exists():
        message = f"there is no hub in {folder}: push an adapter to it first"
        raise FileNotFoundError(errno.ENOENT, message)
    return database(folder).reading()


def writing(folder: Path) -> AbstractContextManager[sqlite3.Connection]:
    """``Database.writing`` of a hub; the folder and the file are made if need be.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing(Path(folder)) as db:
    ...         _ = db.execute("insert into quota values ('me', 3, null)")
    ...     with reading(Path(folder)) as db:
    ...         db.execute("select adapters from quota").fetchall()
    [(3,)]
    """
    return database(folder).writing()
