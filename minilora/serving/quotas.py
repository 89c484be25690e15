"""How much a tenant may ask: token buckets, requests at once, and charges that count once.

**Token bucket.** ``level = min(burst, level + dt · rate)``: a request takes its tokens out, or is
refused with the seconds until there are enough. The burst is a minute's worth. A clock that was
set back gives ``dt = 0`` once. Level, charge and running request change in one transaction, so two
processes on one file let through no more than one would.

**A request is charged once.** Clients retry; openai's does so twice by itself. A request with the
id of an earlier one, by the same tenant with the same body, is another try of it, and takes only
what it uses more. ``MOST_TRIES`` in ``WINDOW`` seconds belong together; the next is a new charge,
so using one id forever buys little.

Tokens are reserved when a request begins, for the longest answer that it may have, and what it did
not use is given back at its end. A killed process gives nothing back. Its rows name it by pid and
birth, so the next request sees that it is gone and what it ran is not counted as running; the
tokens stay taken, and the bucket fills again in a minute.

Functions over an open connection, inside a transaction (tenants.py has the tables). Left out:
which of those that were let in comes next (fairness.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from collections.abc import Callable

from ..database import Session
from ..files import is_running
from .refusals import Refused, wait_first

WINDOW, MOST_TRIES = 600.0, 3  # seconds; clients try a request once and again twice
BIRTH = secrets.token_hex(8)  # of this process: its pid comes again, in containers at once
logger = logging.getLogger("minilora.serving")


class Admission:
    """A request that was let in; leaving the block ends it, settled or not.

    ``session`` is None for a tenant without quotas: nothing is counted.
    """

    def __init__(self, session: Session | None, run: int, tenant: str, request: str):
        self.session, self.run, self.tenant, self.request = session, run, tenant, request

    def settle(self, tokens_used: int) -> None:
        """Give back what was taken and not used, and end it; nothing happens the second time.

        A file that cannot be written costs nobody an answer: the tokens stay taken, and the log
        says so.
        """
        session, self.session = self.session, None
        if session is None:
            return
        try:
            with session.writing() as db:
                end(db, self.run, self.tenant, self.request, tokens_used)
        except OSError:
            logger.exception("request %s: unused tokens were not given back", self.request)

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle(0)


def let_in(
    session: Session, clock: Callable[[], float], tenant: str, request: str, tokens: int,
    body: str, keep: bool = True, runs: bool = True,
) -> int:  # fmt: skip
    """``refresh`` and ``admit`` in one change; the number of the run.

    ``keep=False``: one that would be let in is undone, so nothing is written. A refusal keeps the
    fresh levels: after a clock was set back they fill from there on. ``runs=False``: it needs no
    row, so it is charged and not counted as running. Raises ``Refused``; 503 when the file cannot
    be written.
    """
    run, refused = 0, None
    try:
        with session.writing() as db:
            refresh(db, tenant, clock())
            try:
                if runs:
                    run = admit(db, tenant, request, tokens, body, clock())
                else:
                    take(db, tenant, 1, tokens)
            except Refused as error:
                refused = error
            if refused is None and not keep:
                db.execute("rollback")
    except OSError as error:
        logger.exception("request %s cannot be counted", request)
        message = "the server cannot count requests just now"
        raise wait_first(5, message, 503, "accounting_failed") from error
    if refused is not None:
        raise refused
    return run


def admit(
    db: sqlite3.Connection, tenant: str, request: str, tokens: int, body: str, now: float
) -> int:
    """Charge a request, unless it was charged before; the number of its run. Raises ``Refused``."""
    full = "select concurrent from tenant where name = ?1 and concurrent <="
    at_once = one(db, f"{full} (select count(*) from running where tenant = ?1)", tenant)
    if at_once is not None:
        message = f"{at_once[0]} requests of this key's tenant run already: wait for one to end"
        raise wait_first(1, message, code="too_many_at_once")
    charge = "from charge where tenant = ? and request = ?"
    earlier = one(db, f"select body, taken, tries {charge}", tenant, request)
    if earlier is not None and earlier[0] != body:
        message = f"the request id {request!r:.80} was used for another request: give each its own"
        raise Refused(400, message, code="request_id_reused")
    if earlier is not None and earlier[2] < MOST_TRIES:
        more = max(0, tokens - earlier[1])
        take(db, tenant, 0, more)
        db.execute(
            "update charge set tries = tries + 1, taken = taken + ?"
            " where tenant = ? and request = ?",
            [more, tenant, request],
        )
    else:
        take(db, tenant, 1, tokens)
        row = [tenant, request, body, now, tokens, 0, 1]
        db.execute("insert or replace into charge values (?, ?, ?, ?, ?, ?, ?)", row)
    run = [tenant, request, os.getpid(), BIRTH]
    made = db.execute("insert into running (tenant, request, pid, birth) values (?, ?, ?, ?)", run)
    assert made.lastrowid is not None
    return made.lastrowid


def end(db: sqlite3.Connection, run: int, tenant: str, request: str, used: int) -> None:
    """End a run; the last one of its request gives back what no try used."""
    db.execute("delete from running where id = ?", [run])
    db.execute(
        "update charge set used = max(used, ?) where tenant = ? and request = ?",
        [used, tenant, request],
    )
    others = "select 1 from running where tenant = ? and request = ?"
    charge = "select taken - used from charge where tenant = ? and request = ?"
    unused = one(db, charge, tenant, request)
    if unused is None or one(db, others, tenant, request) is not None:
        return
    db.execute(  # an answer that was longer than reserved leaves a debt
        "update tenant set token_level = min(tokens, token_level + ?) where name = ?",
        [unused[0], tenant],
    )
    db.execute("update charge set taken = used where tenant = ? and request = ?", [tenant, request])


def one(db: sqlite3.Connection, query: str, *values: object) -> tuple | None:
    """The first row."""
    return db.execute(query, values).fetchone()


def refresh(db: sqlite3.Connection, tenant: str, now: float) -> None:
    """Fill both buckets up to now; forget old charges, and the runs of processes that are gone."""
    db.execute(
        "update tenant set at = ?1,"
        " request_level = min(requests, request_level + max(0, ?1 - at) * requests / 60),"
        " token_level = min(tokens, token_level + max(0, ?1 - at) * tokens / 60) where name = ?2",
        [now, tenant],
    )
    runs = db.execute("select distinct pid, birth from running where tenant = ?", [tenant])
    for pid, birth in runs.fetchall():
        if (pid == os.getpid() and birth != BIRTH) or not is_running(pid):
            db.execute("delete from running where pid = ? and birth = ?", [pid, birth])
    db.execute(  # one from the future, where the clock was set back, goes too
        "delete from charge where (at < ? or at > ?) and not exists"
        " (select 1 from running r where r.tenant = charge.tenant and r.request = charge.request)",
        [now - WINDOW, now + WINDOW],
    )


def take(db: sqlite3.Connection, tenant: str, requests: int, tokens: int) -> None:
    """Take requests and tokens out of the buckets. Raises ``Refused``, and takes nothing then."""
    columns = "requests, tokens, request_level, token_level"
    row = one(db, f"select {columns} from tenant where name = ?", tenant)
    assert row is not None
    for noun, per_minute, level, amount in (
        ("requests", row[0], row[2], requests),
        ("tokens", row[1], row[3], tokens),
    ):
        if per_minute is None or amount <= level:
            continue
        quota = f"{per_minute:g} {noun} a minute"
        if amount > per_minute:
            message = f"this takes up to {amount} {noun}, and the quota is {quota}: ask for less"
            raise Refused(400, message, code="beyond_the_quota")
        raise wait_first((amount - level) * 60 / per_minute, f"the quota is {quota}: wait")
    db.execute(
        "update tenant set request_level = request_level - ?, token_level = token_level - ?"
        " where name = ?",
        [requests, tokens, tenant],
    )
