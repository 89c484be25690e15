"""The feedback's SQLite file: corrections, pairs of two adapters' outcomes, and rounds."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..database import Database
from .correction import Feedback

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
    ),
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
