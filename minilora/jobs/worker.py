"""A worker: claim a job, do its steps, claim the next. A process of its own; several may run.

A worker that is killed says nothing: its lease runs out, and another worker goes on from the last
step, or the last checkpoint. One that is told to end (SIGTERM, Ctrl-C) gives its job back at once.
An error of the job's own (its data, its settings, a cancel) ends the job; one that may pass by
itself, such as a full disk, is tried again after a while. The worker survives both.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .claims import Stopped
from .forecast import Limits
from .pulse import Pulse
from .queue import Queue
from .steps import STEP
from .tables import Job
from .work import Work

LOOK = 1.0  # seconds between two looks into an empty queue


class Worker:
    """Works on the jobs of ``queue``, and pushes to the hub in ``hub``; ``stop``: set, it ends.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Worker(Queue(folder), Path(folder, "hub")).run(until_idle=True)  # nothing to do
    0
    """

    def __init__(
        self,
        queue: Queue,
        hub: Path,
        *,
        limits: Limits | None = None,
        name: str = "",
        stop: threading.Event | None = None,
    ):
        self.queue, self.hub, self.limits = queue, Path(hub), limits or Limits()
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.stop = stop or threading.Event()
        self.tell_of: Callable[[Job], object] = lambda job: None  # when it is taken, and after

    def run(self, id: str | None = None, *, until_idle: bool = False) -> int:
        """Work until told to stop, until the queue is empty, or until job ``id`` has ended; returns
        how many claims were worked on.
        """
        torch.set_flush_denormal(True)  # as training does: every step computes alike
        claims = 0
        while not self.stop.is_set():
            try:
                job = self.queue.claim(self.name, id)
            except OSError:  # a full disk: the queue is whole, and has room again some time
                self.stop.wait(self.queue.lease)
                continue
            if job is not None:
                claims += 1
                self.tell_of(job)
                self.work_on(job)
                with contextlib.suppress(OSError):
                    self.tell_of(self.queue.job(job.id))
            elif (until_idle and id is None) or (id and not self.may_come(id)):
                break
            else:
                self.stop.wait(min(LOOK, self.queue.lease / 4))
        return claims

    def may_come(self, id: str) -> bool:
        """Whether a job waits, or is with another worker that may die."""
        return self.queue.job(id).status in ("queued", "running")

    def work_on(self, job: Job) -> None:
        """The steps that are left of a claimed job; never raises but for Ctrl-C."""
        try:
            self.do_steps(job)
        except Stopped as stopped:
            if stopped.status == "queued":
                self.tell(self.queue.release, job)
        except KeyboardInterrupt:
            self.stop.set()
            self.tell(self.queue.release, job)
        except OSError as error:
            self.tell(self.queue.fail, job, str(error), again=True)
            self.stop.wait(min(self.queue.lease, 10.0))
        except Exception as error:
            message = str(error) if isinstance(error, ValueError) else repr(error)
            self.tell(self.queue.fail, job, message)

    def do_steps(self, job: Job) -> None:
        """Step by step, each ended in one transaction. Raises what a step raises."""
        folder = self.queue.folder / "jobs" / job.id
        with Pulse(self.queue, job, self.stop) as pulse:
            while job.status == "running":
                work = Work(job, folder, self.hub, pulse, self.limits)
                shutil.rmtree(work.output, ignore_errors=True)
                place = STEP[job.step](work)
                pulse.check()
                pulse.beat()  # the step's news stand before its end
                job = self.queue.finish(job, place, seconds=pulse.seconds())

    def tell(self, say: Callable[..., None], *words: Any, **more: Any) -> None:
        """Tell the queue; where that fails, the lease runs out and says it too."""
        with contextlib.suppress(OSError):
            say(*words, **more)
