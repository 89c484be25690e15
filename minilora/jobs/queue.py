"""The queue of jobs: a kill at any moment loses nothing and repeats nothing.

    queued --claim--> running --finish--> running (next step) … --finish--> succeeded
                         |  lease over: claimed again, with a higher fence
                         |--wish: cancel, pause--> cancelled, paused --resume--> queued
                         +--fail--> failed;   too many claims without progress --> failed

``claims.py`` has the worker's verbs, this file those of whoever waits for a job. Each call is one
transaction, so any number of processes may use one folder.

Left out: priorities, several machines (the file is on one), jobs that wait for others.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from ..text import listed
from .claims import Claims
from .tables import (
    JOBS,
    OPEN,
    STEPS,
    Event,
    Job,
    check_quota,
    events_of,
    find,
    jobs_where,
    note,
    update,
)

LIMITS = ("jobs", "seconds", "bytes")  # of a quota


class Queue(Claims):
    """The jobs of a folder, in ``jobs.sqlite``; any number of processes may use it.

    - ``lease``: seconds without a renewal after which a worker counts as dead.
    - ``tries``: how many claims may end without any progress before a job fails, so that one that
      kills its worker does not kill them all.
    - ``clock``, ``steady``: the wall clock, and one that never jumps.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     queue = Queue(folder)
    ...     mine = queue.submit({"name": "naval"})
    ...     job = queue.claim("worker 1")
    ...     for _ in range(4):
    ...         job = queue.finish(job, dict)
    ...     job.id == mine.id, job.status, queue.claim("worker 2")
    (True, 'succeeded', None)
    """

    def submit(
        self,
        spec: Mapping[str, Any],
        *,
        tenant: str = "default",
        key: str = "",
        request: Mapping[str, Any] | None = None,
    ) -> Job:
        """Put a job into the queue; an unfinished one of the same ``key`` (default: the spec
        itself) is the same job.

        Raises ``ValueError`` where the tenant's quota is full.
        """
        text = json.dumps(spec, sort_keys=True, ensure_ascii=False)
        key, now, id = key or text, self.clock(), f"ftjob-{secrets.token_hex(8)}"
        with JOBS.writing(self.folder) as db:
            same = f"tenant = ? and key = ? and status in {OPEN}"
            for job in jobs_where(db, same, tenant, key):
                return job
            check_quota(db, tenant, jobs=1)
            asked = json.dumps(dict(request or {}))
            db.execute(
                "insert into job (id, tenant, key, spec, request, status, step, wish, tries, fence,"
                " beats, lease, worker, created, seconds, progress, result, error)"
                " values (?, ?, ?, ?, ?, 'queued', ?, '', 0, 0, 0, 0, '', ?, 0, '{}', '{}', '')",
                (id, tenant, key, text, asked, STEPS[0], now),
            )
            note(db, id, now, "the job waits for a worker")
            return find(db, id)

    def cancel(self, id: str, tenant: str | None = None) -> Job:
        """Cancel a job: at once while it waits, at its worker's next look while it runs.

        Raises ``KeyError`` for an unknown one, ``ValueError`` for one that has ended.
        """
        return self.wish(id, tenant, "cancel", ("queued", "running", "paused"))

    def pause(self, id: str, tenant: str | None = None) -> Job:
        """Pause a job; ``resume`` continues from its last checkpoint. Raises as ``cancel``."""
        return self.wish(id, tenant, "pause", ("queued", "running"))

    def wish(self, id: str, tenant: str | None, wish: str, allowed: tuple[str, ...]) -> Job:
        """Note a wish, and fulfil it at once where nobody is at work."""
        self.job(id, tenant)  # where there is no queue, asking makes none
        with JOBS.writing(self.folder) as db:
            job = find(db, id, tenant)
            if job.status not in allowed:
                expected = listed(allowed, separator=", ")
                raise ValueError(f"{id} is {job.status}: expected a job that is {expected}")
            if job.wish != "cancel":  # a pause does not undo a cancel
                update(db, job, wish=wish)
            job = find(db, id)
            if job.status != "running":
                self.settle(db, job)
            return find(db, id)

    def resume(self, id: str, tenant: str | None = None) -> Job:
        """Let a paused job go on. Raises as ``cancel``, for a job that is not paused."""
        self.job(id, tenant)
        with JOBS.writing(self.folder) as db:
            job = find(db, id, tenant)
            if job.status == "running" and job.wish == "pause":
                update(db, job, wish="")
            elif job.status == "paused":
                update(db, job, status="queued", tries=0)
                note(db, id, self.clock(), "the job goes on")
            else:
                raise ValueError(f"{id} is {job.status}: expected a job that is paused")
            return find(db, id)

    def job(self, id: str, tenant: str | None = None) -> Job:
        """One job. Raises ``KeyError``; another tenant's is unknown too."""
        with JOBS.reading(self.folder) as db:
            return find(db, id, tenant)

    def jobs(self, tenant: str | None = None) -> list[Job]:
        """All jobs, the newest first."""
        try:
            with JOBS.reading(self.folder) as db:
                return [
                    *jobs_where(db, "tenant = coalesce(?, tenant) order by number desc", tenant)
                ]
        except FileNotFoundError:
            return []

    def events(self, id: str, after: int = 0) -> list[Event]:
        """What happened to a job, the oldest first, behind an event's number."""
        with JOBS.reading(self.folder) as db:
            return events_of(db, id, after)

    def quota(self, tenant: str) -> dict[str, float | None]:
        """What a tenant may have, as ``set_quota`` names it. Raises ``FileNotFoundError``."""
        query = f"select {', '.join(LIMITS)} from quota where tenant = ?"
        with JOBS.reading(self.folder) as db:
            row = db.execute(query, (tenant,)).fetchone()
        return dict(zip(LIMITS, row or (None, None, None), strict=True))

    def set_quota(
        self,
        tenant: str,
        *,
        jobs: int | None = None,
        seconds: float | None = None,
        bytes: int | None = None,
    ) -> None:
        """How many unfinished jobs, seconds of work and bytes of files a tenant may have; None: any
        number. Raises ``ValueError`` for a negative one.
        """
        self.change_quota(tenant, jobs=jobs, seconds=seconds, bytes=bytes)

    def change_quota(self, tenant: str, **limits: float | None) -> None:
        """Set the limits that are named, as ``set_quota`` does; the others stay, also those that
        somebody else sets at this moment. Raises ``ValueError``.
        """
        for name, value in limits.items():
            if name not in LIMITS:
                raise ValueError(f"a quota has no {name!r}: expected some of {', '.join(LIMITS)}")
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: expected at least 0, or None, got {value}")
        with JOBS.writing(self.folder) as db:
            db.execute("insert or ignore into quota (tenant) values (?)", (tenant,))
            for name, value in limits.items():
                db.execute(f"update quota set {name} = ? where tenant = ?", (value, tenant))
