"""What a server's users say of its answers, by request id, into the feedback store.

    answer       POST /v1/chat/completions      → request id, adapter, question, answer, user
    correction   POST /v1/feedback, that id     → FeedbackStore of the tenant that asked

So a correction is about the question that was really asked, and about the adapter that really
answered, whatever ``champion`` means by then. Another tenant's request is as unknown as one that
never was. Of the last ``KEPT`` requests of all tenants the texts are kept, in ``feedback.sqlite``,
which is its owner's alone; a text with a secret or a licence that forbids learning is not kept at
all (audit.py).

A correction without a score is one too: right where it equals the answer, else wrong, for the
experiment that the request was in (live.py).

Left out: later turns of a conversation, unless the caller writes the question himself; who a user
really is (feedback.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..database import Session
from ..serving.answered import Answered
from ..serving.experiments import Experiments
from ..serving.tenants import LOCAL
from .audit import audit
from .correction import Feedback
from .feedback import FeedbackStore
from .feedback_tables import DATABASE

logger = logging.getLogger("minilora.jobs")
KEPT = 100_000  # answered requests that can still be corrected
DEFAULT = "default"  # whose feedback it is on a server without keys


class Corrections:
    """A server's side of the feedback in ``folder``: ``Service(on_answer=, on_feedback=)``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     heard = Corrections(Path(folder))
    ...     heard.answered(Answered("local", "r1", "naval@1.0.0", "3f", "ann", "Hull?", "Hull 9%."))
    ...     heard.find("default", "r1")["answer"]
    'Hull 9%.'
    """

    def __init__(
        self,
        folder: Path,
        experiments: Experiments | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.folder, self.experiments, self.clock = folder, experiments, clock
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DATABASE.file).touch(mode=0o600)
        self.session = Session(DATABASE, folder)

    def answered(self, told: Answered) -> None:
        """Keep an answer. A full disk costs the log a line, and nobody his answer."""
        forbidden = audit(told.question) or audit(told.answer)
        texts = ("", "") if forbidden else (told.question, told.answer)
        row = self.clock(), store_of(told.tenant), told.request, told.content, told.user, *texts
        try:
            with self.session.writing() as db:
                made = db.execute(
                    "insert or replace into answered (at, tenant, request, adapter, user, question,"
                    " answer) values (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
                db.execute("delete from answered where id <= ?", ((made.lastrowid or 0) - KEPT,))
        except OSError:
            logger.exception("request %s cannot be corrected: it was not kept", told.request)

    def find(self, tenant: str, request: str) -> dict[str, str] | None:
        """What is known of a tenant's request."""
        names = "adapter", "user", "question", "answer"
        with self.session.reading() as db:
            row = db.execute(
                f"select {', '.join(names)} from answered where tenant = ? and request = ?",
                (tenant, request),
            ).fetchone()
        return row and dict(zip(names, row, strict=True))

    def corrected(self, tenant: Any, request: str, asked: Any) -> str:
        """Take a correction in; returns its state, or "unknown". Raises ``ValueError``.

        ``asked``: the fields of ``POST /v1/feedback``.
        """
        known = self.find(store_of(tenant.name), request)
        if known is None:
            return "unknown"
        context, _, question = known["question"].rpartition("\n")  # as own_forms.question joins
        if asked.question is not None:
            question, context = asked.question, asked.context or ""
        if not question.strip():
            raise ValueError(
                "the question is not known: it was more than one message, or must not be learnt; "
                "give question, and context if need be"
            )
        feedback = Feedback(
            source=known["user"] or tenant.name,
            adapter=known["adapter"],
            request=question,
            correction=asked.correction,
            answer=known["answer"],
            context=context,
            topic=asked.topic or "",
            tenant=store_of(tenant.name),
        )
        state = FeedbackStore(self.folder, feedback.tenant).add(feedback)
        if asked.score is None and self.experiments is not None:
            with suppress(ValueError):  # it has a score already
                self.experiments.outcome(request, float(not feedback.failed), tenant.name)
        return state


def store_of(tenant: str) -> str:
    """Whose feedback store a tenant of the server has.

    >>> store_of("acme"), store_of("local")
    ('acme', 'default')
    """
    return DEFAULT if tenant == LOCAL.name else tenant
