"""Files that came through the API: a tenant's own id for bytes that are stored once, by their hash.

No name from a request becomes a path: the file lies in ``uploads/`` under its SHA-256
(hub/blobs.py), and what it was called is a column. A hub may have the same folder: what it sweeps
is ``blobs/``. Another tenant's id is unknown, like one that never existed.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..hub.blobs import Blobs, digest
from .tables import JOBS, OPEN, check_quota

COLUMNS = "number, id, tenant, filename, purpose, bytes, sha, created"


class Upload(NamedTuple):
    """One file of a tenant."""

    number: int
    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    sha: str
    created: float


class Uploads:
    """The files of a queue's folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     uploads = Uploads(Path(folder))
    ...     mine = uploads.put("acme", "a.jsonl", "fine-tune", b"{}")
    ...     uploads.content(mine), [each.filename for each in uploads.of("acme")]
    (b'{}', ['a.jsonl'])
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.folder, self.clock = folder, clock
        self.blobs = Blobs(folder / "uploads")

    def put(self, tenant: str, filename: str, purpose: str, content: bytes) -> Upload:
        """Store a file; the same one again is the same file, as when a client tries twice.

        Raises ``ValueError`` where the tenant's quota is full.
        """
        same = f"select {COLUMNS} from upload where tenant=? and filename=? and purpose=? and sha=?"
        key = tenant, filename, purpose, digest(content)
        with JOBS.writing(self.folder) as db:
            row = db.execute(same, key).fetchone()
            if row is None:
                check_quota(db, tenant, bytes=len(content))
            sha = self.blobs.put(content)  # of a known file too: its bytes may be lost or damaged
            if row is None:
                id, now = f"file-{secrets.token_hex(12)}", self.clock()
                db.execute(
                    "insert into upload (id, tenant, filename, purpose, bytes, sha, created)"
                    " values (?, ?, ?, ?, ?, ?, ?)",
                    (id, tenant, filename, purpose, len(content), sha, now),
                )
                row = db.execute(same, key).fetchone()
        return Upload(*row)

    def get(self, id: str, tenant: str) -> Upload:
        """One file. Raises ``KeyError``."""
        with JOBS.writing(self.folder) as db:
            return found(db, id, tenant)

    def of(self, tenant: str) -> list[Upload]:
        """A tenant's files, the newest first."""
        with JOBS.writing(self.folder) as db:
            rows = f"select {COLUMNS} from upload where tenant = ? order by number desc"
            return [Upload(*row) for row in db.execute(rows, (tenant,))]

    def path(self, upload: Upload) -> Path:
        """Where its bytes lie."""
        return self.blobs.path(upload.sha)

    def content(self, upload: Upload) -> bytes:
        """Its bytes, checked. Raises ``DamageError``."""
        return self.blobs.read(upload.sha)

    def delete(self, id: str, tenant: str) -> None:
        """Forget a file, and its bytes if nobody else has the same.

        Raises ``KeyError``; ``ValueError`` while an unfinished job needs it.
        """
        with JOBS.writing(self.folder) as db:
            upload = found(db, id, tenant)
            # another tenant's job has a row of that tenant's, which keeps the bytes
            needed = f"select id from job where status in {OPEN} and tenant = ? and instr(spec, ?)"
            if job := db.execute(needed, (tenant, upload.sha)).fetchone():
                raise ValueError(f"{id} is needed by {job[0]}: cancel the job, or wait for its end")
            db.execute("delete from upload where id = ?", (id,))
            others = db.execute("select 1 from upload where sha = ?", (upload.sha,)).fetchone()
            if others is None:
                self.path(upload).unlink(missing_ok=True)


def found(db: sqlite3.Connection, id: str, tenant: str) -> Upload:
    """A tenant's file by its id. Raises ``KeyError``."""
    row = db.execute(
        f"select {COLUMNS} from upload where id = ? and tenant = ?", (id, tenant)
    ).fetchone()
    if row is None:
        raise KeyError(f"no file {id!r:.80}")
    return Upload(*row)
