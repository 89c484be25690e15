"""The feedback's SQLite file: corrections, pairs of two adapters' outcomes, rounds, and answers."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..database import Database
from .correction import OWNER, Feedback, hashed

DATABASE = Database(
    "feedback.sqlite",
    "feedback",
    "add some",
    (
        """
    create table feedback (
        id integer primary key, at real not null, tenant text not null, source text not null,
        adapter text not null, request text not null, context text not null,
        answer text not null, correction text not null, topic text not null,
        digest text not null, question text not null, state text not null, reason text not null,
        uses integer not null default 0, unique (tenant, digest)
    );
    create index feedback_by_state on feedback (tenant, state, source);
    create table live (
        id integer primary key, at real not null, tenant text not null, old text not null,
        new text not null, old_right integer not null, new_right integer not null
    );
    create table round (
        id integer primary key, at real not null, tenant text not null, name text not null,
        word text not null, learnt integer not null, told text not null
    );
    """,
        """
    alter table live add column digest text not null default '';
    alter table live add column source text not null default '';
    create unique index live_by_question on live (tenant, old, new, digest) where digest != '';
    """,
        """
    create table answered (
        id integer primary key, at real not null, tenant text not null, request text not null,
        adapter text not null, user text not null, question text not null, answer text not null,
        unique (tenant, request)
    );
    """,
        """
    alter table answered add column number integer not null default 0;
    alter table answered add column corrected text not null default '';
    update answered set number = id;
    create index answered_by_number on answered (tenant, number);
    """,
    ),
    private=True,
)


def insert(
    db: sqlite3.Connection,
    feedback: Feedback,
    at: float,
    texts: Sequence[str],
    state: str,
    reason: str = "",
) -> int:
    """A row; ``texts``: request, context, answer, correction as they are kept. 0: it is known."""
    return db.execute(
        "insert or ignore into feedback (at, tenant, source, adapter, request, context,"
        " answer, correction, topic, digest, question, state, reason)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(at, feedback.tenant, feedback.source, feedback.adapter, *texts),
            *(feedback.topic, feedback.digest, feedback.question, state, reason),
        ),
    ).rowcount


def is_expelled(db: sqlite3.Connection, tenant: str, source: str) -> bool:
    """Whether a tenant's loop has put a source out."""
    query = "select 1 from feedback where tenant = ? and source = ? and state = 'expelled'"
    return db.execute(query, (tenant, source)).fetchone() is not None


def in_turn(rows: Sequence[tuple[int, str, str, int]]) -> list[int]:
    """The ids of held-out rows (id, source, digest, uses) in the order in which they are drawn.

    What judged least comes first, in an order that is random among equals; and the owner's
    questions and the users' take turns, so that each block has the share of both that the pool has.
    Users complain of what the champion got wrong: asked first, they alone would decide.

    >>> in_turn([(1, "ann", "a", 0), (2, "ann", "b", 1), (3, OWNER, "c", 4), (4, OWNER, "d", 0)])
    [1, 4, 2, 3]
    """
    places = []
    for side in (False, True):
        pool = [row for row in rows if (row[1] == OWNER) == side]
        pool.sort(key=lambda row: (row[3], hashed(row[2], str(row[3]))))
        places += [((place + 0.5) / len(pool), side, row[0]) for place, row in enumerate(pool)]
    return [number for *_, number in sorted(places)]
