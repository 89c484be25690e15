"""From data to a registered adapter without a person at the keyboard, resumable from any kill; the
loop that adapts, and the gate that holds it.

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
    work.py        what a step has in hand
    training_step.py    train, from the last checkpoint
    steps.py       prepare, train, evaluate, register
    worker.py      ``Worker``: claims jobs and does their steps
    uploads.py     files that came through the API
    api_forms.py   what the fine-tuning API takes and gives
    fine_tuning.py what such a request means to the queue
    api.py         OpenAI's fine-tuning API over the queue
    audit.py       secrets and licences, which must not be learnt
    pairs.py       pairs of answers, and what they prove
    norms.py       how far an adapter moves its base
    gate.py        may the new adapter take the old one's place?
    blame.py       who taught it?
    correction.py  what a user said of an answer
    feedback_tables.py  their SQLite tables
    feedback.py    the store of those: quarantine, dedupe, caps, rotated held-out examples
    corrections.py what a server's users correct, by request id, into that store
    recipe.py      what the loop keeps good, and what of two models is compared
    exam.py        held-out questions, drawn until enough is known
    judge.py       one round's candidates, on the same questions
    live.py        live pairs: a share of the server's users gets the other adapter
    learning.py    the loop's training, as a job of the queue
    adapt.py       ``Loop``: due, train, gate, promote, watch, roll back

Imports ``hub``, ``serving``, the library's wings and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .adapt import Loop
    from .correction import Feedback
    from .feedback import FeedbackStore
    from .gate import Measured, Rules, decide
    from .pairs import Pairs
    from .queue import Queue
    from .recipe import Recipe
    from .spec import Spec, read_spec
    from .tables import Event, Job
    from .worker import Worker

__all__ = [
    "Event",
    "Feedback",
    "FeedbackStore",
    "Job",
    "Loop",
    "Measured",
    "Pairs",
    "Queue",
    "Recipe",
    "Rules",
    "Spec",
    "Worker",
    "decide",
    "read_spec",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
