"""A worker's side of the queue: claim a job, renew, end a step, fail, give back.

A claim is a *lease*: whoever does not renew it loses the job to the next who asks. A worker that
was only slow may wake up later, so each claim has a *fence*, one higher than the last, and what an
older claim wants to write is refused (``Lost``). An output is put in place inside the transaction
that checks the fence and writes the event, so it is there exactly once.

Leases are read on two clocks, because the wall clock jumps: a lease is over when the time written
in it has passed, or when this process has watched it, on a clock that never jumps, for its whole
length without a renewal. A jump forward may take a job from a living worker, which the fence makes
harmless; a jump back keeps nobody waiting.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .tables import ENDED, JOBS, STEPS, Job, find, jobs_where, note, update

LEASE, TRIES = 30.0, 5


class Stopped(Exception):
    """The work must end here; ``status`` says why: cancelled, paused, or queued (released)."""

    def __init__(self, status: str):
        super().__init__(f"the job is {status}")
        self.status = status


class Lost(Stopped):
    """Another worker has the job by now: nothing of this claim may be written any more."""

    def __init__(self) -> None:
        super().__init__("with another worker")


class Claims:
    """The jobs of a folder, as a worker sees them; ``queue.Queue`` says what the arguments are."""

    def __init__(
        self,
        folder: str | Path,
        *,
        lease: float = LEASE,
        tries: int = TRIES,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ):
        if not lease > 0:
            raise ValueError(f"lease: expected a positive number of seconds, got {lease}")
        self.folder, self.lease, self.tries = Path(folder), lease, tries
        self.clock, self.steady = clock, steady
        self.watched: dict[str, tuple[int, int, float]] = {}  # job: fence, beats, since when

    def claim(self, worker: str, id: str | None = None) -> Job | None:
        """The next job (or that ``id``), now this worker's; None when nothing waits.

        Jobs whose worker died are taken up again. A tenant with fewer running jobs comes first,
        then the older job.
        """
        with JOBS.writing(self.folder) as db:
            for job in jobs_where(db, "status = 'running' order by number"):
                if self.is_over(job):
                    self.take_back(db, job)
            busy = "(select count(*) from job b where b.tenant = job.tenant and b.status='running')"
            order = f"status = 'queued' and id = coalesce(?, id) order by {busy}, number limit 1"
            for job in jobs_where(db, order, id):
                now, fence = self.clock(), job.fence + 1
                counts = {"fence": fence, "beats": job.beats + 1, "tries": job.tries + 1}
                times = {"lease": now + self.lease, "started": job.started or now}
                update(db, job, status="running", worker=worker, error="", **counts, **times)
                note(db, job.id, now, f"{worker} begins with {job.step}")
                return find(db, job.id)
        return None

    def is_over(self, job: Job) -> bool:
        """Whether a running job's lease is over, on either clock."""
        now, seen = self.steady(), self.watched.get(job.id)
        if seen is None or seen[:2] != (job.fence, job.beats):
            self.watched[job.id] = seen = (job.fence, job.beats, now)
        return self.clock() > job.lease or now - seen[2] > self.lease

    def take_back(self, db: sqlite3.Connection, job: Job) -> None:
        """From a dead worker: to the queue, to where a wish wants it, or to the failed."""
        now, died = self.clock(), f"{job.worker} was lost in {job.step}"
        note(db, job.id, now, died, level="warn")
        fenced = {"worker": "", "fence": job.fence + 1}
        if job.wish:
            update(db, job, **fenced)
            self.settle(db, job)
        elif job.tries >= self.tries:
            error = f"{died}: it has cost {job.tries} workers in a row without any progress"
            update(db, job, status="failed", ended=now, error=error, **fenced)
            note(db, job.id, now, error, level="error")
        else:
            update(db, job, status="queued", **fenced)

    def settle(self, db: sqlite3.Connection, job: Job) -> str:
        """Do what the job's wish says; returns the new status."""
        status = {"cancel": "cancelled", "pause": "paused"}[job.wish]
        now = self.clock()
        ended = {"ended": now} if status in ENDED else {}
        update(db, job, status=status, wish="", worker="", **ended)
        note(db, job.id, now, f"the job is {status}")
        return status

    def mine(self, db: sqlite3.Connection, claim: Job) -> Job:
        """The job as it is now. Raises ``Lost`` unless the claim still holds."""
        try:
            job = find(db, claim.id)
        except KeyError:
            raise Lost from None
        if job.status != "running" or job.fence != claim.fence:
            raise Lost
        return job

    def beat(
        self,
        claim: Job,
        *,
        progress: Mapping[str, Any] | None = None,
        events: tuple[dict[str, Any], ...] = (),
        kept: bool = False,
        seconds: float = 0.0,
    ) -> None:
        """Renew the lease, and write progress and events down.

        ``kept``: the work since the claim would survive a kill by now, so the tries count from
        here. Raises ``Lost``, or ``Stopped`` when a cancel or a pause was wished for.
        """
        with JOBS.writing(self.folder) as db:
            job = self.mine(db, claim)
            now = self.clock()
            for event in events:
                note(db, job.id, **{"at": now, **event})
            values: dict[str, Any] = {"lease": now + self.lease, "beats": job.beats + 1}
            values |= {"tries": 0} if kept else {}
            values |= {"progress": dict(progress)} if progress else {}
            update(db, job, seconds=job.seconds + seconds, **values)
            stopped = self.settle(db, job) if job.wish else ""
        if stopped:
            raise Stopped(stopped)

    def finish(
        self,
        claim: Job,
        place: Callable[[], Mapping[str, Any]],
        message: str = "",
        seconds: float = 0.0,
    ) -> Job:
        """End a step: ``place()`` puts its output where it belongs, under the lock, once the fence
        is checked; what it returns goes into the job's result.

        Raises ``Lost``, ``Stopped``, and what ``place`` raises, with the job as it was.
        """
        with JOBS.writing(self.folder) as db:
            job = self.mine(db, claim)
            if job.wish:
                stopped = self.settle(db, job)
            else:
                stopped, now = "", self.clock()
                result = {**job.result, **place()}
                done = job.step == STEPS[-1]
                values = {"status": "succeeded", "worker": "", "ended": now} if done else {}
                if not done:
                    values["step"] = STEPS[STEPS.index(job.step) + 1]
                values |= {"tries": 0, "lease": now + self.lease, "beats": job.beats + 1}
                update(db, job, result=result, seconds=job.seconds + seconds, **values)
                note(db, job.id, now, message or f"{job.step} is done", mark=f"done {job.step}")
            after = find(db, job.id)
        if stopped:
            raise Stopped(stopped)
        return after

    def fail(self, claim: Job, error: str, again: bool = False) -> None:
        """End a job with an error; ``again``: the cause may pass (a full disk), so it is queued, as
        long as there are tries left. Does nothing where the claim is lost.
        """
        with JOBS.writing(self.folder) as db:
            try:
                job = self.mine(db, claim)
            except Lost:
                return
            now = self.clock()
            note(db, job.id, now, error, level="error")
            if job.wish:
                self.settle(db, job)
            elif again and job.tries < self.tries:
                update(db, job, status="queued", worker="", error=error)
            else:
                update(db, job, status="failed", worker="", ended=now, error=error)

    def release(self, claim: Job) -> None:
        """Give a job back, as a worker that is told to stop does; it costs no try."""
        with JOBS.writing(self.folder) as db:
            try:
                job = self.mine(db, claim)
            except Lost:
                return
            if job.wish:
                self.settle(db, job)
            else:
                update(db, job, status="queued", worker="", tries=max(0, job.tries - 1))
                note(db, job.id, self.clock(), "given back")
