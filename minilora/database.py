"""SQLite files of the services: how one is opened, and what a transaction promises.

Every change is one ``BEGIN IMMEDIATE`` transaction: it takes the write lock first, so two writers
stand in a queue instead of overwriting each other, and a check (a quota, the expected old value of
an alias) still holds when the row goes in. With ``journal_mode = WAL`` and ``synchronous = FULL`` a
commit is on the disk when the call returns, and a process killed half-way leaves the old state; its
lock dies with it (sqlite.org/wal.html, /lockingv3.html).

A ``Database`` says which tables a service has and holds no connection: each block opens the file,
makes one transaction and closes it, so it survives forks and kills. A ``Session`` keeps one open
for changes that are small and many, a hundred times faster.

Left out: network file systems, whose locks SQLite cannot trust; a database from the future is not
opened.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

WAIT = 60.0  # seconds that a writer waits for the others


@dataclass(frozen=True)
class Database:
    """One service's SQLite file.

    - ``file``: its name in the service's folder; ``noun``: what it is, in messages; ``begin``: how
      one comes to have it.
    - ``migrations``: step n brings a file from schema n to n + 1; a released step never changes.
    - ``private``: only the file's owner may read it, whoever made it and however.

    >>> import tempfile
    >>> notes = Database("notes.sqlite", "notebook", "write a note", ("create table note (it);",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with notes.writing(Path(folder)) as db:
    ...         _ = db.execute("insert into note values ('Hull 90%')")
    ...     with notes.reading(Path(folder)) as db:
    ...         db.execute("select it from note").fetchall()
    [('Hull 90%',)]
    """

    file: str
    noun: str
    begin: str
    migrations: tuple[str, ...]
    private: bool = False

    @contextmanager
    def reading(self, folder: Path) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state, also where the folder cannot be written.

        Raises ``FileNotFoundError`` where there is no such file, and what ``explained`` says.
        """
        file = folder / self.file
        missing = f"there is no {self.noun} in {folder}: {self.begin} first"
        if not file.exists():
            raise FileNotFoundError(errno.ENOENT, missing)
        with self.explained(file):
            try:
                connection = self.opened(file, "mode=rw")
            except sqlite3.OperationalError:
                wal = file.with_name(f"{self.file}-wal")
                if wal.exists() and wal.stat().st_size:
                    raise  # its last changes are in the log, which only a writer can fold in
                # nobody can write here, so nothing will change under the reader
                connection = self.opened(file, "mode=ro&immutable=1")
        with closing(connection), self.explained(file):
            connection.execute("begin")
            if self.check_schema(connection, file) == 0:  # somebody is just making it
                raise FileNotFoundError(errno.ENOENT, missing)
            yield connection

    @contextmanager
    def writing(self, folder: Path) -> Iterator[sqlite3.Connection]:
        """One change, whole or not at all: committed when the block ends, undone when it raises.

        The folder and the file are made if need be. Raises what ``explained`` says.
        """
        file = folder / self.file
        with self.explained(file):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if self.private:
                    close_to_others(file)
            except OSError as error:  # a file is in the way, or nobody may write there
                message = f"the {self.noun} in {folder}: {error.strerror}; choose another folder"
                raise OSError(error.errno, f"{message}. Nothing was changed") from error
            connection = self.opened(file, "mode=rwc")
        with closing(connection), self.explained(file), whole(connection):
            self.migrate(connection, file)
            yield connection

    def opened(self, file: Path, mode: str) -> sqlite3.Connection:
        """A connection without transactions of Python's own, durable, with foreign keys on, of a
        schema that is known; for one thread at a time.
        """
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=WAIT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if "rwc" in mode:
                connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute("pragma foreign_keys = on")
            self.check_schema(connection, file)
        except BaseException:
            connection.close()
            raise
        return connection

    def check_schema(self, connection: sqlite3.Connection, file: Path) -> int:
        """The schema's number. Raises ``ValueError`` for one that a newer minilora made."""
        (schema,) = connection.execute("pragma user_version").fetchone()
        if schema > len(self.migrations):
            raise ValueError(
                f"{file} has schema {schema}, and this minilora knows {len(self.migrations)}: "
                "a newer minilora wrote it; update this one. Nothing was changed"
            )
        return schema

    def migrate(self, connection: sqlite3.Connection, file: Path) -> None:
        """Bring the file to the newest schema, inside the transaction that needs it."""
        schema = self.check_schema(connection, file)
        for step in self.migrations[schema:]:
            for statement in step.split(";"):
                connection.execute(statement)
            schema += 1
            connection.execute(f"pragma user_version = {schema}")

    @contextmanager
    def explained(self, file: Path) -> Iterator[None]:
        """SQLite's errors as sentences: ``OSError`` for the disk, ``ValueError`` for a file that is
        damaged or something else.
        """
        try:
            yield
        except sqlite3.OperationalError as error:
            number, hint = reason(str(error))
            message = f"the {self.noun} in {file.parent}: {hint}. Nothing was changed"
            raise OSError(number, message) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise ValueError(
                f"{file} is damaged, or is not a {self.noun} ({error}): restore it from a copy"
            ) from error


class Session:
    """One open connection of this process, whose threads take turns.

    A commit survives a killed process, but the last ones not a power cut
    (``synchronous = NORMAL``): the call does not wait for the disk. Made and migrated as
    ``Database.writing`` does; raises as that does. Not to be carried over a fork.

    >>> import tempfile
    >>> counts = Database("counts.sqlite", "count", "count", ("create table seen (it);",))
    >>> with tempfile.TemporaryDirectory() as folder, Session(counts, Path(folder)) as session:
    ...     with session.writing() as db:
    ...         _ = db.execute("insert into seen values ('Hull 90%')")
    ...     with session.reading() as db:
    ...         db.execute("select it from seen").fetchall()
    [('Hull 90%',)]
    """

    def __init__(self, database: Database, folder: Path):
        with database.writing(folder):
            pass  # made, and of the newest schema
        self.database, self.file, self.turn = database, folder / database.file, threading.Lock()
        with database.explained(self.file):
            self.connection = database.opened(self.file, "mode=rw")
            self.connection.execute("pragma synchronous = normal")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One change, whole or not at all. Raises what ``explained`` says."""
        with self.turn, self.database.explained(self.file), whole(self.connection):
            yield self.connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For one query. Raises what ``explained`` says."""
        with self.turn, self.database.explained(self.file):
            yield self.connection

    def close(self) -> None:
        """Close the connection, after whose turn it is."""
        with self.turn:
            self.connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def whole(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction: committed when the block ends, undone when it raises or did so itself."""
    connection.execute("begin immediate")
    try:
        yield
        if connection.in_transaction:
            connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def close_to_others(file: Path) -> None:
    """Make a file if need be, and it and SQLite's side files its owner's alone."""
    file.touch(mode=0o600)
    for each in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        if each.exists() and each.stat().st_mode & 0o077:
            each.chmod(0o600)


def reason(error: str) -> tuple[int, str]:
    """The system's number for an operational error, and what to do about it.

    >>> reason("database or disk is full")[1]
    'the disk is full; free some space'
    """
    if "full" in error:
        return errno.ENOSPC, "the disk is full; free some space"
    if "readonly" in error or "unable to open" in error:
        return errno.EROFS, "the folder cannot be written; choose another, or its owner"
    if "locked" in error:
        return errno.EBUSY, f"another process has been writing for {WAIT:.0f} s; try again"
    return errno.EIO, error
