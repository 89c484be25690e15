"""SQLite files of a known schema: how one is opened, and what a transaction promises.

    database = Database(Path("jobs.sqlite"), ("create table job (id text primary key);",))
    with database.writing() as db: …            one change, whole or not at all
    with database.reading() as db: …            one state, whatever others write meanwhile

Every change is one ``BEGIN IMMEDIATE`` transaction: it takes the write lock first, so two writers
stand in a queue instead of overwriting each other, and a check (a quota, the expected old value of
a row) still holds when the row goes in. With ``journal_mode = WAL`` and ``synchronous = FULL`` a
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
from dataclasses import dataclass
from pathlib import Path

WAIT = 60.0  # seconds that a writer waits for the others


@dataclass(frozen=True)
class Database:
    """A file and its schema.

    ``migrations``: step n brings a database from schema n to n + 1; a released step never changes.
    ``noun`` names it in errors. ``durable=False``: a commit survives a killed process, but not a
    power cut (``synchronous = NORMAL``); it saves the wait for the disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     database = Database(Path(folder) / "x.sqlite", ("create table pair (a, b)",))
    ...     with database.writing() as db:
    ...         _ = db.execute("insert into pair values (1, 2)")
    ...     with database.reading() as db:
    ...         db.execute("select * from pair").fetchall()
    [(1, 2)]
    """

    file: Path
    migrations: tuple[str, ...]
    noun: str = "database"
    durable: bool = True

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of it, also where the folder cannot be written.

        Raises ``FileNotFoundError`` where there is no such file, and what ``explained`` says.
        """
        if not self.file.exists():
            message = f"there is no {self.noun} in {self.file.parent}"
            raise FileNotFoundError(errno.ENOENT, message)
        with self.explained():
            try:
                connection = self.opened("mode=rw")
            except sqlite3.OperationalError:
                wal = self.file.with_name(f"{self.file.name}-wal")
                if wal.exists() and wal.stat().st_size:
                    raise  # its last changes are in the log, which only a writer can fold in
                # nobody can write here, so nothing will change under the reader
                connection = self.opened("mode=ro&immutable=1")
        with closing(connection), self.explained():
            connection.execute("begin")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One change, whole or not at all: committed when the block ends, undone when it raises.

        The folder and the database are made if need be. Raises what ``explained`` says.
        """
        with self.explained():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            connection = self.opened("mode=rwc")
        with closing(connection), self.explained():
            connection.execute("begin immediate")
            try:
                self.migrate(connection)
                yield connection
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise

    def opened(self, mode: str) -> sqlite3.Connection:
        """A connection without transactions of Python's own, with foreign keys on, of a schema
        that is known.
        """
        address = f"{self.file.absolute().as_uri()}?{mode}"
        connection = sqlite3.connect(address, uri=True, timeout=WAIT, isolation_level=None)
        try:
            if "rwc" in mode:
                connection.execute("pragma journal_mode = wal")
            connection.execute(f"pragma synchronous = {'full' if self.durable else 'normal'}")
            connection.execute("pragma foreign_keys = on")
            self.check_schema(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def check_schema(self, connection: sqlite3.Connection) -> int:
        """The schema's number. Raises ``ValueError`` for one that a newer minilora made."""
        (schema,) = connection.execute("pragma user_version").fetchone()
        if schema > len(self.migrations):
            raise ValueError(
                f"{self.file} has schema {schema}, and this minilora knows {len(self.migrations)}: "
                "a newer minilora wrote it; update this one. Nothing was changed"
            )
        return schema

    def migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the database to the newest schema, inside the transaction that needs it."""
        schema = self.check_schema(connection)
        for step in self.migrations[schema:]:
            for statement in step.split(";"):
                connection.execute(statement)
            schema += 1
            connection.execute(f"pragma user_version = {schema}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """SQLite's errors as sentences: ``OSError`` for the disk, ``ValueError`` for a file that is
        damaged or something else.
        """
        try:
            yield
        except sqlite3.OperationalError as error:
            number, hint = disk_error(str(error))
            message = f"the {self.noun} in {self.file.parent}: {hint}. Nothing was changed"
            raise OSError(number, message) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise ValueError(
                f"{self.file} is damaged, or is not a {self.noun} ({error}): restore it from a copy"
            ) from error


def disk_error(reason: str) -> tuple[int, str]:
    """The number and the sentence for what SQLite says of the disk."""
    if "full" in reason:
        return errno.ENOSPC, "the disk is full; free some space"
    if "readonly" in reason or "unable to open" in reason:
        return errno.EROFS, "the folder cannot be written; choose another, or its owner"
    if "locked" in reason:
        return errno.EBUSY, f"another process has been writing for {WAIT:.0f} s; try again"
    return errno.EIO, reason
