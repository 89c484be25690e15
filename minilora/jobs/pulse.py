"""A worker's pulse: a thread that renews the lease while the work goes on, and learns of wishes.

Loading a big base or answering a batch takes longer than a look at the database should wait, so the
renewals have a thread of their own. The work asks ``check`` between two pieces, which costs nothing
and raises when it must end: ``Stopped`` after a cancel or a pause, ``Lost`` when the job belongs to
another worker by now.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import Any

from .claims import Lost, Stopped
from .queue import Queue
from .tables import Job

LOOK = 1.0  # seconds between two renewals, or less where the lease is short


class Pulse:
    """A context: inside, the claim of ``job`` is renewed and its news are written down."""

    def __init__(self, queue: Queue, job: Job, stop: threading.Event | None = None):
        self.queue, self.job = queue, job
        self.stop = stop or threading.Event()  # the worker's own: it is told to end
        self.reason: Stopped | None = None
        self.news: deque[dict[str, Any]] = deque()
        self.progress: dict[str, Any] = {}
        self.kept = False  # whether something was saved since the last renewal
        self.over, self.one_at_a_time = threading.Event(), threading.Lock()
        self.counted = time.monotonic()
        self.thread = threading.Thread(target=self.run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        self.thread.join()
        with contextlib.suppress(Stopped, OSError):  # the last news, if the claim still holds
            self.beat()

    def check(self) -> None:
        """Raise ``Stopped`` when the work must end."""
        if self.reason is not None:
            raise self.reason
        if self.stop.is_set():
            raise Stopped("queued")

    def say(self, message: str, mark: str | None = None, **more: Any) -> None:
        """News of the job, written down with the next renewal; the time is now's."""
        self.news.append({"at": self.queue.clock(), "message": message, "mark": mark, **more})

    def seconds(self) -> float:
        """Seconds of work since they were last counted."""
        before, self.counted = self.counted, time.monotonic()
        return self.counted - before

    def run(self) -> None:
        """The thread: renew, until the work is over or the claim is gone."""
        renewed, pause = time.monotonic(), min(LOOK, self.queue.lease / 4)
        while not self.over.wait(pause):
            try:
                self.beat()
                renewed = time.monotonic()
            except Stopped as stopped:
                self.reason = stopped
                return
            except OSError:  # a full disk, a database that is locked: the next may succeed
                if time.monotonic() - renewed > self.queue.lease:
                    self.reason = Lost()  # somebody else may have it by now
                    return

    def beat(self) -> None:
        """One renewal, with what there is to tell. Raises as ``Queue.beat``."""
        with self.one_at_a_time:
            count, kept, counted = len(self.news), self.kept, self.counted
            more: dict[str, Any] = {
                "progress": self.progress,
                "kept": kept,
                "seconds": self.seconds(),
            }
            try:
                self.queue.beat(self.job, events=tuple(self.news)[:count], **more)
            except OSError:
                self.counted = counted
                raise
            for _ in range(count):
                self.news.popleft()
            self.kept = self.kept and not kept
