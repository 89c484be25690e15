"""Who asked what of whom, and what came of it: one row a request, in one SQLite file.

    begin    when, the tenant, the request's id, what was asked for; before anything is done
    end      status, the adapter that answered and its content, tokens, seconds

Without texts, unless ``texts=True`` asks for them: whoever keeps questions and answers has to
look after them. The file is its owner's alone (mode 0600).

**A full disk.** A request that cannot be written down is not begun: 503. So everything that was
answered is in the log, at least with its beginning. Where the end cannot be written, the answer was
computed and goes out; the server's own log gets an error with the request's id, ``missed`` counts
it, and the row stays without an end, as that of a killed process does.

A commit survives a kill, the last ones not a power cut (database.py, ``Session``). Left out: a
limit on age, which is the owner's to decide (``delete from entry where at < …``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..database import Database, Session
from .refusals import Refused, wait_first
from .tenants import LOCAL, Tenant

logger = logging.getLogger("minilora.serving")
DATABASE = Database(
    "audit.sqlite",
    "audit log",
    "start one with minilora serve --audit",
    (
        """
    create table entry (
        id integer primary key, at real not null, tenant text not null, number integer not null,
        request text not null,
        action text not null, model text not null,
        status integer, adapter text, digest text, prompt_tokens integer,
        generated_tokens integer, waited real, took real, question text, answer text
    );
    create unique index entry_by_tenant on entry (tenant, number)
    """,
    ),
    private=True,
)


class Audit:
    """The log in a file. ``missed``: ends that could not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Audit(Path(folder) / "log") as audit:
    ...     row = audit.begin("acme", "request-1", "chat", "naval", question="Hull status?")
    ...     audit.end(row, "request-1", 200, generated_tokens=7)
    ...     [entry] = audit.entries("acme")
    >>> entry["status"], entry["generated_tokens"], entry["question"]
    (200, 7, None)
    """

    def __init__(self, path: Path, *, texts: bool = False, clock: Callable[[], float] = time.time):
        self.texts, self.clock, self.missed = texts, clock, 0
        self.session = Session(replace(DATABASE, file=path.name), path.parent)

    def begin(
        self, tenant: str, request: str, action: str, model: str, question: str | None = None
    ) -> int:
        """Write down that a request begins; the row's number. Raises ``Refused`` (503)."""
        text = question if self.texts else None
        row = [self.clock(), tenant, request, action, model[:200], text]
        columns = "at, tenant, request, action, model, question, number"
        number = "(select ifnull(max(number), 0) + 1 from entry where tenant = ?2)"
        query = f"insert into entry ({columns}) values (?1, ?2, ?3, ?4, ?5, ?6, {number})"
        try:
            with self.session.writing() as db:
                made = db.execute(query, row)
        except OSError as error:
            logger.exception("request %s cannot be written into the audit log", request)
            message = "the server cannot write its audit log just now"
            raise wait_first(5, message, 503, "audit_failed") from error
        assert made.lastrowid is not None
        return made.lastrowid

    def end(
        self,
        row: int,
        request: str,
        status: int,
        *,
        adapter: str | None = None,
        digest: str | None = None,
        prompt_tokens: int = 0,
        generated_tokens: int = 0,
        waited: float | None = None,
        took: float = 0.0,
        answer: str | None = None,
    ) -> None:
        """Write down how it ended; a failure to do so is logged and counted, and not raised."""
        fields: dict[str, Any] = {
            "status": status,
            "adapter": adapter,
            "digest": digest,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": generated_tokens,
            "waited": waited,
            "took": took,
            "answer": answer if self.texts else None,
        }
        named = ", ".join(f"{name} = ?" for name in fields)
        try:
            with self.session.writing() as db:
                db.execute(f"update entry set {named} where id = ?", [*fields.values(), row])
        except OSError:
            self.missed += 1
            logger.exception("request %s: its end is not in the audit log", request)

    def entries(self, tenant: str | None, after: int = 0, most: int = 100) -> list[dict[str, Any]]:
        """Rows behind ``after`` of one tenant, or with None of all, the oldest first.

        A tenant's rows have numbers of their own: gaps would tell how much others ask.
        """
        id, where = ("id", "?2 is null") if tenant is None else ("number", "tenant = ?2")
        query = (
            f"select *, {id} as id from entry where {id} > ?1 and {where} order by {id} limit ?3"
        )
        with self.session.reading() as db:
            found = db.execute(query, [after, tenant, most])
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def close(self) -> None:
        """Close the file."""
        self.session.close()

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def noted(
    audit: Audit | None, tenant: Tenant | None, request: str, action: str, model: str
) -> Iterator[None]:
    """Begin and end the entry of something that is no generation. Raises as ``Audit.begin``."""
    if audit is None:
        yield
        return
    began, status = time.monotonic(), 500
    row = audit.begin((tenant or LOCAL).name, request, action, model)
    try:
        yield
        status = 200
    except Refused as refused:
        status = refused.status
        raise
    finally:
        audit.end(row, request, status, took=time.monotonic() - began)
