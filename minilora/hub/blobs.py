"""Files named by their content: ``blobs/2c/2cf24dba…`` holds the bytes whose SHA-256 is that name.

Equal bytes are one file, whatever adapters they belong to; a file is never changed, and a flipped
bit shows because the name no longer fits. The order of a write is what survives a crash:

    temporary file -> fsync -> rename -> fsync the folder            then the row in the database

so a row never names a file that is not whole on the disk. A process killed in between leaves a file
without a row, which ``gc`` removes. Reading always hashes; 1 GB takes about a second.

The caller holds the database's write lock while a blob is put and until its row stands. Blob first
and lock later would let a ``gc`` of another process delete the blob in between
(tests/hub/test_crash.py runs them against each other).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..files import write_atomically

SHA = re.compile(r"[0-9a-f]{64}")


def digest(content: bytes) -> str:
    """SHA-256 (FIPS 180-4) in hexadecimal.

    >>> digest(b"hello")[:8]
    '2cf24dba'
    """
    return hashlib.sha256(content).hexdigest()


class DamageError(ValueError):
    """Stored bytes are missing, or are no longer those that were stored.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         Blobs(Path(folder)).read("0" * 64)
    ...     except DamageError as error:
    ...         print(str(error).endswith("is missing"))
    True
    """


class Blobs:
    """The folder of files named by their content.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     blobs = Blobs(Path(folder))
    ...     blobs.read(blobs.put(b"hello"))
    b'hello'
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, sha: str) -> Path:
        """Where the bytes of this hash lie."""
        if not SHA.fullmatch(sha):
            raise ValueError(f"expected a SHA-256 of 64 hexadecimal digits, got {sha!r}")
        return self.folder / sha[:2] / sha

    def put(self, content: bytes) -> str:
        """Store bytes durably and return their hash; what is there already and whole stays as it
        is.
        """
        sha = digest(content)
        path = self.path(sha)
        if self.problem(sha):
            write_durably(path, content)
            fsync_folder(self.folder)  # the folder 2c/ may be new
        return sha

    def read(self, sha: str) -> bytes:
        """The bytes, checked. Raises ``DamageError`` that names the file."""
        path = self.path(sha)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DamageError(f"{path} is missing") from None
        except OSError as error:
            raise DamageError(f"{path} cannot be read: {error}") from error
        if digest(content) != sha:
            raise DamageError(f"{path} is damaged: its content hashes to {digest(content)[:12]}…")
        return content

    def problem(self, sha: str) -> str:
        """What is wrong with a blob; empty when nothing is."""
        try:
            self.read(sha)
        except DamageError as error:
            return str(error)
        return ""

    def files(self) -> Iterator[Path]:
        """Every file here: blobs, and what killed writers left under temporary names."""
        yield from (path for path in sorted(self.folder.glob("*/*")) if path.is_file())


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it is whole on the disk under its name, or not there, even after a power
    cut.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())

    write_atomically(path, write)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Force a rename in this folder to the disk; Windows has no such call and does it with the
    rename.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
