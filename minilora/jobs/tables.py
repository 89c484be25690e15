"""The jobs' SQLite file: its tables, and their rows as values.

    job      what is wanted (the spec), how far it is, and who works on it under which fence
    event    what happened to a job, in order: messages and metrics; one mark, one event
    upload   files that came through the API: a tenant's own name for a blob
    quota    how many unfinished jobs, seconds of work and bytes of files a tenant may have

A ``mark`` makes an event idempotent: a step that is done again after a kill says the same again,
and the second time is left out.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..database import Database

STEPS = ("prepare", "train", "evaluate", "register")
OPEN = ("queued", "running", "paused")
ENDED = ("succeeded", "failed", "cancelled")
# Step n brings a database from schema n to n + 1; a released step never changes.
MIGRATIONS = (
    """
    create table job (
        number integer primary key autoincrement, id text not null unique,
        tenant text not null, key text not null, spec text not null, request text not null,
        status text not null, step text not null, wish text not null,
        tries integer not null, fence integer not null, beats integer not null,
        lease real not null, worker text not null,
        created real not null, started real, ended real, seconds real not null,
        progress text not null, result text not null, error text not null
    );
    create index job_by_status on job (status);
    create table event (
        number integer primary key autoincrement, job text not null references job (id),
        at real not null, mark text, level text not null, type text not null,
        message text not null, data text not null, unique (job, mark)
    );
    create table upload (
        number integer primary key autoincrement, id text not null unique, tenant text not null,
        filename text not null, purpose text not null, bytes integer not null, sha text not null,
        created real not null
    );
    create table quota (
        tenant text primary key, jobs integer, seconds real, bytes integer
    ) without rowid;
    """,
)
JOBS = Database("jobs.sqlite", "queue of jobs", "submit a job", MIGRATIONS)


@dataclass(frozen=True)
class Job:
    """One job as it is in the queue, and the claim of the worker that holds it.

    - ``spec``, ``request``: JSON of what is wanted; ``key``: equal ones are the same wish.
    - ``step``: the one that is next or under way; ``wish``: cancel or pause, for the worker.
    - ``fence``: counts the claims; what an older claim writes is refused. ``beats`` counts the
      renewals of the ``lease`` (seconds since 1970); ``tries``: claims since anything was kept.
    - ``seconds``: of work so far; ``progress``: step, steps, loss, seconds left; ``result``: what
      the finished steps say.

    >>> import tempfile
    >>> from minilora.jobs import Queue, Spec
    >>> spec = Spec.parse({"name": "naval", "data": {"train": "my.jsonl"}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     job = Queue(folder).submit(spec.as_dict())
    >>> job.name, job.status, job.is_open
    ('naval', 'queued', True)
    """

    number: int
    id: str
    tenant: str
    key: str
    spec: str
    request: dict[str, Any]
    status: str
    step: str
    wish: str
    tries: int
    fence: int
    beats: int
    lease: float
    worker: str
    created: float
    started: float | None
    ended: float | None
    seconds: float
    progress: dict[str, Any]
    result: dict[str, Any]
    error: str

    @property
    def is_open(self) -> bool:
        """Whether anything is still to be done."""
        return self.status in OPEN

    @property
    def name(self) -> str:
        """The name that the spec pushes to; empty where the spec cannot be read."""
        return str(read_object(self.spec).get("name", ""))


class Event(NamedTuple):
    """What happened to a job: ``type`` is message or metrics, ``level`` info, warn or error.

    >>> Event(1, "job-1", 0.0, "info", "message", "train begins", {}).message
    'train begins'
    """

    number: int
    job: str
    at: float
    level: str
    type: str
    message: str
    data: dict[str, Any]


def read_object(text: str) -> dict[str, Any]:
    """A JSON object of a row; empty where the row is damaged, so that one bad row stops no queue.

    >>> read_object('{"step": 3}'), read_object("{")
    ({'step': 3}, {})
    """
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


COLUMNS = ", ".join(Job.__dataclass_fields__)


def jobs_where(db: sqlite3.Connection, condition: str, *values: Any) -> Iterator[Job]:
    """The jobs of a condition in SQL."""
    for row in db.execute(f"select {COLUMNS} from job where {condition}", values):
        fields = dict(zip(Job.__dataclass_fields__, row, strict=True))
        for name in ("request", "progress", "result"):
            fields[name] = read_object(fields[name])
        yield Job(**fields)


def find(db: sqlite3.Connection, id: str, tenant: str | None = None) -> Job:
    """A job by its id. Raises ``KeyError`` where there is none, or it is another tenant's."""
    condition = "id = ? and tenant = coalesce(?, tenant)"
    job = next(jobs_where(db, condition, id, tenant), None)
    if job is None:
        raise KeyError(f"no job {id!r}")
    return job


def update(db: sqlite3.Connection, job: Job, **values: Any) -> None:
    """Write columns of a job; dicts become JSON."""
    texts = [json.dumps(v) if isinstance(v, dict) else v for v in values.values()]
    columns = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"update job set {columns} where id = ?", (*texts, job.id))


def note(
    db: sqlite3.Connection,
    job: str,
    at: float,
    message: str,
    *,
    mark: str | None = None,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Write down what happened, once for each ``mark``."""
    values = job, at, mark, level, type, message, json.dumps(data or {})
    db.execute(
        "insert or ignore into event (job, at, mark, level, type, message, data)"
        " values (?, ?, ?, ?, ?, ?, ?)",
        values,
    )


def events_of(db: sqlite3.Connection, job: str, after: int) -> list[Event]:
    """The events of a job behind one's number, the oldest first."""
    rows = db.execute(
        "select number, job, at, level, type, message, data from event"
        " where job = ? and number > ? order by number",
        (job, after),
    )
    return [Event(*row)._replace(data=read_object(row[-1])) for row in rows]


# what an open job will have cost, by the forecast, or what it has cost already
COST = (
    f"case when status in {OPEN} and json_valid(result)"
    " then max(seconds, coalesce(json_extract(result, '$.forecast.seconds'), 0)) else seconds end"
)


def check_quota(
    db: sqlite3.Connection, tenant: str, *, jobs: int = 0, seconds: float = 0.0, bytes: int = 0
) -> None:
    """Raise ``ValueError`` unless a tenant may have so many more unfinished jobs, seconds of work
    and bytes of files.
    """
    row = db.execute(
        "select jobs, seconds, bytes from quota where tenant = ?", (tenant,)
    ).fetchone()
    if row is None:
        return
    has = db.execute(
        f"select count(*) filter (where status in {OPEN}), coalesce(sum({COST}), 0) from job"
        " where tenant = ?",
        (tenant,),
    ).fetchone()
    stored = "select coalesce(sum(bytes), 0) from upload where tenant = ?"
    has += db.execute(stored, (tenant,)).fetchone()
    nouns, more = ("unfinished jobs", "seconds of work", "bytes of files"), (jobs, seconds, bytes)
    for noun, limit, now, added in zip(nouns, row, has, more, strict=True):
        if limit is not None and now + added > limit:
            raise ValueError(
                f"the quota of {tenant!r} is {limit:,.0f} {noun}, and this would make it "
                f"{now + added:,.0f}"
            )
