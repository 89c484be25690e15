"""From data to a registered adapter without a person at the keyboard, resumable from any kill.

In reading order:

    sections.py    the sections of a spec, and what can be wrong with them
    spec.py        what a job is to do, read strictly
    tables.py      the queue's SQLite tables
    claims.py      a worker's side: claims with a lease and a fence
    queue.py       ``Queue``: submit, cancel, pause, resume, events
    pulse.py       the thread that renews a lease
    forecast.py    what the ledger says before a job starts
    preflight.py   what can be said of a spec before it is queued
    evaluation.py  what an adapter is worth
    steps.py       prepare, train, evaluate, register
    worker.py      ``Worker``: claims jobs and does their steps

Imports ``hub``, the library's wings and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .queue import Queue
    from .spec import Spec, read_spec
    from .tables import Event, Job
    from .worker import Worker

__all__ = ["Event", "Job", "Queue", "Spec", "Worker", "read_spec"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
