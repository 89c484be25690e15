"""What a server's users say of its answers, by request id, into the feedback store.

    answer       POST /v1/chat/completions      → request id, adapter, question, answer, user
    correction   POST /v1/feedback, that id     → FeedbackStore of the tenant that asked

So a correction is about the question that was really asked, and about the adapter that really
answered, whatever ``champion`` means by then; and a request has one correction. Another tenant's
request is unknown, like one that never existed. Of each tenant's last ``KEPT`` requests the texts
are kept, in ``feedback.sqlite``, which is its owner's alone; a text with a secret or a licence that
forbids learning (audit.py), or of more than ``LONGEST`` characters, is not kept at all.

A correction without a score is one too, where the answer is known: right where it equals the
answer, else wrong, for the experiment that the request was in (live.py). What was refused, or comes
from a source that was expelled, votes for nothing.

Left out: later turns of a conversation, unless the caller writes the question; who a user
really is (feedback.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..database import Session
from ..model.own_forms import question as joined
from ..serving.answered import Answered
from ..serving.experiments import Experiments
from ..serving.tenants import LOCAL
from .audit import audit
from .correction import Feedback
from .feedback import FeedbackStore
from .feedback_tables import DATABASE, is_expelled

KEPT = 100_000  # answered requests of a tenant that can still be corrected
LONGEST = 32_000  # characters of a question or an answer, as /v1/feedback takes them
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
        self.session = Session(DATABASE, folder)

    def answered(self, told: Answered) -> None:
        """Keep an answer, so that it can be corrected."""
        long = max(len(told.question), len(told.answer)) > LONGEST
        forbidden = long or audit(told.question) or audit(told.answer)
        texts = ("", "") if forbidden else (told.question, told.answer)
        tenant = store_of(told.tenant)
        row = self.clock(), tenant, told.request, told.content, told.user, *texts
        with self.session.writing() as db:
            (last,) = db.execute(
                "select ifnull(max(number), 0) from answered where tenant = ?", (tenant,)
            ).fetchone()
            db.execute(
                "insert or replace into answered (at, tenant, request, adapter, user, question,"
                " answer, number) values (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, last + 1),
            )
            db.execute(
                "delete from answered where tenant = ? and number <= ?", (tenant, last + 1 - KEPT)
            )

    def find(self, tenant: str, request: str) -> dict[str, str] | None:
        """What is known of a tenant's request."""
        names = "adapter", "user", "question", "answer"
        with self.session.reading() as db:
            row = db.execute(
                f"select {', '.join(names)} from answered where tenant = ? and request = ?",
                (tenant, request),
            ).fetchone()
        return row and dict(zip(names, row, strict=True))

    def corrected(self, tenant: Any, request: str, asked: Any) -> str | None:
        """Take a correction in; returns its state, or "unknown". Raises ``ValueError``.

        ``asked``: the fields of ``POST /v1/feedback``. Where it is a score alone: "refused" if its
        source was expelled, else None.
        """
        store = store_of(tenant.name)
        known = self.find(store, request)
        if asked.correction is None:
            source = known and (known["user"] or tenant.name)
            return "refused" if source and self.expelled(store, source) else None
        if known is None:
            return "unknown"
        question, context = question_of(known["question"], asked)
        feedback = Feedback(
            source=known["user"] or tenant.name,
            adapter=known["adapter"],
            request=question,
            correction=asked.correction,
            answer=known["answer"],
            context=context,
            topic=asked.topic or "",
            tenant=store,
        )
        kept = FeedbackStore(self.folder, store)
        kept.check(feedback)
        self.take(store, request, feedback.digest)
        state = kept.add(feedback)
        if state == "refused":
            self.take(store, request, "", feedback.digest)  # without the secret, say, it may come
        elif asked.score is None and known["answer"] and self.experiments is not None:
            with suppress(ValueError):  # it has a score already
                self.experiments.outcome(request, float(not feedback.failed), tenant.name)
        return state

    def expelled(self, store: str, source: str) -> bool:
        """Whether the loop has put a source out."""
        with self.session.reading() as db:
            return is_expelled(db, store, source)

    def take(self, store: str, request: str, digest: str, before: str = "") -> None:
        """Note a request's one correction, by its digest. Raises ``ValueError`` for another."""
        with self.session.writing() as db:
            taken = db.execute(
                "update answered set corrected = ? where tenant = ? and request = ?"
                " and corrected in (?, ?)",
                (digest, store, request, before, digest),
            ).rowcount
        if not taken:
            raise ValueError(f"request {request!r} has another correction already")


def question_of(known: str, asked: Any) -> tuple[str, str]:
    """(question, context) of a correction: those that were asked, the caller's where nobody knows.

    Raises ``ValueError``.
    """
    given = (asked.question or "").strip()
    if asked.context and not given:
        raise ValueError("a context needs its question, got the context alone: give question too")
    if not known.strip():
        if not given:
            raise ValueError(
                "the question of this request was not kept (more than one message, too long, or "
                "not to be learnt): give question, and context if need be"
            )
        return asked.question, asked.context or ""
    said = joined(asked.question, asked.context or "")[0]["content"] if given else known
    if said.strip() != known.strip():
        raise ValueError(
            "this request asked another question than the one given: leave question out"
        )
    context, _, last = known.rpartition("\n")  # as own_forms.question joins
    return last, context


def store_of(tenant: str) -> str:
    """Whose feedback store a tenant of the server has.

    >>> store_of("acme"), store_of("local")
    ('acme', 'default')
    """
    return DEFAULT if tenant == LOCAL.name else tenant
