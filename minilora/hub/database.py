"""The hub's SQLite file: its tables, how it is opened, and what a transaction promises.

    version   name, version, the manifest, the identity of the content
    blob      stored bytes by their hash;  file: which of them a version has, under which path
    alias     names that move: champion -> 1.2.0
    event     who did what, when;  quota: how many versions and bytes a tenant may have

Every change is one ``BEGIN IMMEDIATE`` transaction: it takes the write lock first, so two writers
stand in a queue instead of overwriting each other, and a check (a quota, the expected old value of
an alias) still holds when the row goes in. With ``journal_mode = WAL`` and ``synchronous = FULL`` a
commit is on the disk when the call returns, and a process killed half-way leaves the old state; its
lock dies with it (sqlite.org/wal.html, /lockingv3.html).

Left out: network file systems, whose locks SQLite cannot trust; a database from the future is not
opened.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

FILE = "hub.sqlite"
WAIT = 60.0  # seconds that a writer waits for the others
# Step n brings a database from schema n to n + 1; a released step never changes.
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


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees one state of the hub, also where the folder cannot be written.

    Raises ``FileNotFoundError`` where there is no hub, and what ``explained`` says.
    """
    file = folder / FILE
    if not file.exists():
        raise FileNotFoundError(
            errno.ENOENT, f"there is no hub in {folder}: push an adapter to it first"
        )
    with explained(file):
        try:
            connection = opened(file, "mode=rw")
        except sqlite3.OperationalError:
            wal = file.with_name(f"{FILE}-wal")
            if wal.exists() and wal.stat().st_size:
                raise  # its last changes are in the log, which only a writer can fold in
            # nobody can write here, so nothing will change under the reader
            connection = opened(file, "mode=ro&immutable=1")
    with closing(connection), explained(file):
        connection.execute("begin")
        yield connection


@contextmanager
def writing(folder: Path) -> Iterator[sqlite3.Connection]:
    """One change, whole or not at all: committed when the block ends, undone when it raises.

    The folder and the database are made if need be. Raises what ``explained`` says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing(Path(folder)) as db:
    ...         _ = db.execute("insert into quota values ('me', 3, null)")
    ...     with reading(Path(folder)) as db:
    ...         db.execute("select adapters from quota").fetchall()
    [(3,)]
    """
    file = folder / FILE
    with explained(file):
        folder.mkdir(parents=True, exist_ok=True)
        connection = opened(file, "mode=rwc")
    with closing(connection), explained(file):
        connection.execute("begin immediate")
        try:
            migrate(connection, file)
            yield connection
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise


def opened(file: Path, mode: str) -> sqlite3.Connection:
    """A connection without transactions of Python's own, durable, with foreign keys on, of a schema
    that is known.
    """
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?{mode}", uri=True, timeout=WAIT, isolation_level=None
    )
    try:
        if "rwc" in mode:
            connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        check_schema(connection, file)
    except BaseException:
        connection.close()
        raise
    return connection


def check_schema(connection: sqlite3.Connection, file: Path) -> int:
    """The schema's number. Raises ``ValueError`` for one that a newer minilora made."""
    (schema,) = connection.execute("pragma user_version").fetchone()
    if schema > len(MIGRATIONS):
        raise ValueError(
            f"{file} has schema {schema}, and this minilora knows {len(MIGRATIONS)}: "
            "a newer minilora wrote it; update this one. Nothing was changed"
        )
    return schema


def migrate(connection: sqlite3.Connection, file: Path) -> None:
    """Bring the database to the newest schema, inside the transaction that needs it."""
    schema = check_schema(connection, file)
    for step in MIGRATIONS[schema:]:
        for statement in step.split(";"):
            connection.execute(statement)
        schema += 1
        connection.execute(f"pragma user_version = {schema}")


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """SQLite's errors as sentences: ``OSError`` for the disk, ``ValueError`` for a file that is
    damaged or something else.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        reason = str(error)
        if "full" in reason:
            number, hint = errno.ENOSPC, "the disk is full; free some space"
        elif "readonly" in reason or "unable to open" in reason:
            number, hint = errno.EROFS, "the folder cannot be written; choose another, or its owner"
        elif "locked" in reason:
            number, hint = (
                errno.EBUSY,
                f"another process has been writing for {WAIT:.0f} s; try again",
            )
        else:
            number, hint = errno.EIO, reason
        raise OSError(number, f"the hub in {file.parent}: {hint}. Nothing was changed") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        raise ValueError(
            f"{file} is damaged, or is not a hub ({error}): restore it from a copy"
        ) from error
