"""What users said of answers: kept, quarantined, looked through, and let into the next training.

    request, adapter, answer, correction, source, tenant, topic
        → refused      it holds a secret, or a licence that forbids it      (audit.py)
        → quarantine   a while, so that a flood is seen before it is learnt
        → accepted     not contradicted by another source, and within the source's cap
        → heldout      one in five of those: never trained on, it judges

An example counts once per tenant, by its content, spaces aside. ``adapter`` is the content id of
the adapter that answered (hub/adapter.py), so that a complaint about a version that is gone is
known as such.

The held-out examples are *rotated*: a judgement takes those that have judged least so far, and what
judged ``WORN`` times judges no more, since a choice among many adapters has learnt it.
Users' corrections are too few, and no fair sample of what is asked, so the owner ``reserve``s
questions too, and each block has its share of both.

Left out: who a source really is. A thousand accounts of one person are a thousand sources here.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..training.examples import Example
from .audit import audit
from .correction import FIELDS, OWNER, Feedback, Slice, is_heldout
from .feedback_tables import DATABASE, in_turn, insert, is_expelled
from .pairs import Pairs

WORN = 5  # judgements, after which a held-out example judges no more


@dataclass(frozen=True)
class Review:
    """What a look through the quarantine did, by count; ``kept``: still there, by reason."""

    accepted: int
    heldout: int
    kept: dict[str, int]


class FeedbackStore:
    """The feedback of one tenant, in a folder's SQLite file; any number of processes may use it.

    ``quarantine``: seconds before an example may be learnt; ``cap``: how many examples of one
    source may be learnt in all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeedbackStore(Path(folder), quarantine=0)
    ...     told = store.add(Feedback("ann", "", "Status?", "Hull 90%."))
    ...     again = store.add(Feedback("bob", "", "Status?", "Hull  90%."))
    ...     told, again, store.review().accepted + store.review().heldout, store.counts()
    ('quarantine', 'known', 1, {'accepted': 1})
    """

    def __init__(
        self,
        folder: str | Path,
        tenant: str = "default",
        quarantine: float = 86_400.0,
        cap: int = 200,
    ):
        if cap < 1 or not quarantine >= 0:
            raise ValueError(
                f"expected a cap from 1 on and seconds from 0 on, got {cap} and {quarantine}"
            )
        self.folder, self.tenant = Path(folder), tenant
        self.quarantine, self.cap = quarantine, cap

    def add(self, feedback: Feedback, now: float | None = None) -> str:
        """Take in one; returns its state: quarantine, refused, or known (nothing was added).

        What is refused is kept without its texts, so that a secret is nowhere on the disk; of a
        source that was expelled nothing is kept. Raises what ``check`` does.
        """
        self.check(feedback)
        texts = feedback.request, feedback.context, feedback.answer, feedback.correction
        wrong = [each for text in (*texts, feedback.topic) for each in audit(text)]
        feedback = replace(feedback, topic="") if wrong else feedback
        state, reason = ("refused", str(wrong[0])) if wrong else ("quarantine", "")
        shown = ("", "", "", "") if wrong else texts
        at = time.time() if now is None else now
        with DATABASE.writing(self.folder) as db:
            if is_expelled(db, self.tenant, feedback.source):
                return "refused"
            new = insert(db, feedback, at, shown, state, reason)
        return state if new or wrong else "known"

    def check(self, feedback: Feedback) -> None:
        """Raises ``ValueError`` for another tenant's, and for a user who is called as the owner."""
        if feedback.tenant != self.tenant:
            raise ValueError(f"this is the store of {self.tenant!r}, got {feedback.tenant!r}'s")
        if feedback.source == OWNER:
            raise ValueError(f"source {OWNER!r} is the loop's owner's: give the user another name")

    def review(self, now: float | None = None) -> Review:
        """Let out of quarantine what has waited, is not contradicted and is within its cap."""
        until = (time.time() if now is None else now) - self.quarantine
        kept: Counter[str] = Counter()
        let: Counter[str] = Counter()
        with DATABASE.writing(self.folder) as db:
            answers = Counter(
                question
                for (question,) in db.execute(
                    "select question from feedback where tenant = ?"
                    " and state not in ('refused', 'expelled')",
                    (self.tenant,),
                )
            )
            taught = self.taught(db)
            rows = db.execute(
                "select id, at, source, question from feedback"
                " where tenant = ? and state = 'quarantine' order by at, id",
                (self.tenant,),
            ).fetchall()
            for number, at, source, question in rows:
                heldout = is_heldout(question)
                if at > until:
                    reason = "too new"
                elif answers[question] > 1:
                    reason = "contradicted"
                elif not heldout and taught[source] >= self.cap:
                    reason = "over the source's cap"
                else:
                    state = "heldout" if heldout else "accepted"
                    taught[source] += not heldout
                    let[state] += 1
                    db.execute(
                        "update feedback set state = ?, reason = '' where id = ?", (state, number)
                    )
                    continue
                kept[reason] += 1
                db.execute("update feedback set reason = ? where id = ?", (reason, number))
        return Review(let["accepted"], let["heldout"], dict(kept))

    def accepted(self, without: Iterable[str] = ()) -> list[Feedback]:
        """What may be learnt, in the order in which it came; some sources left out."""
        left_out = set(without)
        return [each for each in self.rows("accepted") if each.source not in left_out]

    def reserve(self, examples: Iterable[Example]) -> int:
        """Hold questions of the owner's out beside the users'; returns how many were new.

        Their mix should be that of the questions that are really asked: they say what is better.
        """
        added, now = 0, time.time()
        with DATABASE.writing(self.folder) as db:
            for each in examples:
                asked, wanted, context = each.instruction, each.output, each.input
                own = Feedback(OWNER, "", asked, wanted, wanted, context, tenant=self.tenant)
                texts = asked, context, wanted, wanted
                added += insert(db, own, now, texts, "heldout")
        return added

    def retire(self) -> int:
        """Let what has judged ``WORN`` times judge no more; returns how many that were.

        A user's is learnt then, within the cap; the owner's is not: nobody asked to teach it.
        """
        with DATABASE.writing(self.folder) as db:
            taught = self.taught(db)
            rows = db.execute(
                "select id, source from feedback where tenant = ? and state = 'heldout'"
                " and uses >= ? order by id",
                (self.tenant, WORN),
            ).fetchall()
            for number, source in rows:
                learnt = source != OWNER and taught[source] < self.cap
                taught[source] += learnt
                state = "accepted" if learnt else "worn"
                db.execute("update feedback set state = ? where id = ?", (state, number))
        return len(rows)

    def taught(self, db: Any) -> Counter[str]:
        """How many examples of each source may be learnt by now."""
        query = "select source from feedback where tenant = ? and state = 'accepted'"
        return Counter(source for (source,) in db.execute(query, (self.tenant,)))

    def heldout(self, count: int, drawn: Collection[str] = ()) -> list[Feedback]:
        """The next ``count`` examples (``in_turn``); this is one more judgement.

        ``drawn``: digests of those that this round has already; they do not come again.
        """
        with DATABASE.writing(self.folder) as db:
            pool = db.execute(
                "select id, source, digest, uses from feedback where tenant = ?"
                " and state = 'heldout' and digest not in (select value from json_each(?))",
                (self.tenant, json.dumps(list(drawn))),
            ).fetchall()
            numbers = [(number,) for number in in_turn(pool)[:count]]
            db.executemany("update feedback set uses = uses + 1 where id = ?", numbers)
            row_of = f"select {FIELDS} from feedback where id = ?"
            return [Feedback(*db.execute(row_of, number).fetchone()) for number in numbers]

    def rows(self, state: str) -> list[Feedback]:
        """All feedback in one state."""
        with DATABASE.writing(self.folder) as db:
            found = db.execute(
                f"select {FIELDS} from feedback where tenant = ? and state = ? order by at, id",
                (self.tenant, state),
            ).fetchall()
        return [Feedback(*row) for row in found]

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        with DATABASE.writing(self.folder) as db:
            return dict(
                db.execute(
                    "select state, count(*) from feedback where tenant = ? group by state",
                    (self.tenant,),
                ).fetchall()
            )

    def slices(self, adapter: str = "") -> list[Slice]:
        """By topic and source, how many answers were corrected, the worst first.

        ``adapter``: only answers of this one. What was refused or expelled does not count.
        """
        told: dict[tuple[str, str], list[bool]] = {}
        for state in ("quarantine", "accepted", "heldout"):
            for each in self.rows(state):
                if adapter in ("", each.adapter) and each.source != OWNER:
                    told.setdefault((each.topic, each.source), []).append(each.failed)
        slices = [Slice(*key, sum(failed), len(failed)) for key, failed in told.items()]
        return sorted(slices, key=lambda each: (-each.failed, each.topic, each.source))

    def expel(self, source: str, reason: str) -> int:
        """Take all that a source taught out again, and refuse what else it sends; returns how many
        examples.
        """
        with DATABASE.writing(self.folder) as db:
            return db.execute(
                "update feedback set state = 'expelled', reason = ? where tenant = ?"
                " and source = ? and state in ('accepted', 'heldout', 'quarantine')",
                (reason, self.tenant, source),
            ).rowcount

    def outcome(self, old: str, new: str, old_right: bool, new_right: bool) -> None:
        """Note a live pair: the k-th outcomes of two adapters, by content id."""
        self.outcomes(old, new, Pairs((old_right,), (new_right,)))

    def outcomes(self, old: str, new: str, pairs: Pairs, asked: Sequence[Feedback] = ()) -> None:
        """Note pairs of two adapters, by content id: live ones, or those of an exam.

        ``asked``: the exam's questions. One that was noted before stays as it was: an exam that is
        taken again proves nothing more.
        """
        now = time.time()
        questions = [(each.digest, each.source) for each in asked] or [("", "")] * len(pairs)
        with DATABASE.writing(self.folder) as db:
            db.executemany(
                "insert or ignore into live (at, tenant, old, new, old_right, new_right,"
                " digest, source) values (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (now, self.tenant, old, new, a, b, *question)
                    for a, b, question in zip(pairs.old, pairs.new, questions, strict=True)
                ],
            )

    def live(self, old: str, new: str, since: float = 0.0) -> Pairs:
        """The pairs of two adapters so far, from a time on (seconds since 1970)."""
        return self.answered(old, new, since)[1]

    def answered(self, old: str, new: str, since: float = 0.0) -> tuple[list[str], Pairs]:
        """The same, and whose question each was: nobody's, if the pair is a live one."""
        with DATABASE.writing(self.folder) as db:
            rows = db.execute(
                "select source, old_right, new_right from live"
                " where tenant = ? and old = ? and new = ? and at >= ? order by id",
                (self.tenant, old, new, since),
            ).fetchall()
        sources = [source for source, *_ in rows]
        return sources, Pairs(tuple(bool(a) for _, a, _ in rows), tuple(bool(b) for *_, b in rows))

    def note_round(self, name: str, word: str, learnt: int, told: Iterable[str]) -> None:
        """Write down how a round of the loop ended, and how many examples it had."""
        values = time.time(), self.tenant, name, word, learnt, "\n".join(told)
        with DATABASE.writing(self.folder) as db:
            db.execute(
                "insert into round (at, tenant, name, word, learnt, told)"
                " values (?, ?, ?, ?, ?, ?)",
                values,
            )

    def rounds(self, name: str) -> list[tuple[float, str, int, str]]:
        """(seconds since 1970, word, examples, what was told) of each round, the oldest first."""
        with DATABASE.writing(self.folder) as db:
            return db.execute(
                "select at, word, learnt, told from round where tenant = ? and name = ?"
                " order by id",
                (self.tenant, name),
            ).fetchall()
