"""The log of experiments: who was shown what, and what came of it, in one SQLite file.

    experiment   settings; when it began and ended
    exposure     a request and the arm that was drawn for it, written before it is answered
    outcome      its score, 0 (bad) to 1 (good), through ``/v1/feedback``
    verdict      an arm that was shown to be worse than the control; failover.py reads it

All processes of a server share the file, and evidence is computed from it anew at each look.

An outcome belongs to the arm that was drawn, also when failover let another adapter answer:
leaving those out would compare only what went well (*intention to treat*). But an arm with a
verdict is served only where nobody may step in (failover.py), and later outcomes do not count, nor
those that had no partner yet: its evidence stays as it was at the verdict. A stop that only the
past decides keeps E honest.
The loop's experiments (jobs/live.py) name their champion, decide by other pairs, and have no
verdicts.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ..database import Database
from ..text import did_you_mean
from .assignment import Assignment, Experiment, read_experiments
from .comparison import Comparison, compare
from .evidence import e_value

DATABASE = Database(
    "experiments.sqlite",
    "log of experiments",
    "start one with minilora serve --experiments experiments.toml",
    (
        """
        create table experiment (
            name text primary key, fields text not null, origin text not null,
            started real not null, ended real
        ) without rowid;
        create table exposure (
            tenant text not null, request text not null, experiment text not null,
            unit text not null, arm text not null, at real not null,
            primary key (tenant, request)
        ) without rowid;
        create index exposure_by_unit on exposure (experiment, unit);
        create table outcome (
            id integer primary key, tenant text not null, request text not null,
            score real not null, at real not null,
            unique (tenant, request),
            foreign key (tenant, request) references exposure
        );
        create table verdict (
            experiment text not null, adapter text not null, e real not null, at real not null,
            primary key (experiment, adapter)
        ) without rowid;
        """,
    ),
)
FRESH = 1.0  # seconds that what other processes changed may stay unseen
FIRST_OUTCOMES = """
    select arm, score, outcome.at, min(outcome.id) as first
    from outcome join exposure using (tenant, request)
    where experiment = ? group by unit order by first
"""


class Experiments:
    """The experiments of a server, in a folder that all its processes share.

    ``toml``: those that run; one that is in the log and no longer in the file ends. Raises
    ``ValueError`` for a file that is wrong, before anything is changed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     running = Experiments(Path(folder))
    ...     running.start(Experiment("greeting", "naval", {"old": "a", "new": "b"}))
    ...     drawn = running.assign("naval", "ann")
    ...     running.record(drawn, "request-1")
    ...     running.outcome("request-1", 1.0)
    ...     drawn.arm, running.evidence("greeting")[0].pairs
    ('greeting', 'old')
    ('old', 0)
    """

    def __init__(self, folder: Path, toml: Path | None = None):
        self.folder, self.read_at = folder, -math.inf
        self.running: dict[str, Experiment] = {}  # by model
        self.worse_adapters: dict[str, str] = {}
        wanted = read_experiments(toml) if toml is not None else []
        self.in_file = {experiment.name for experiment in wanted}
        with DATABASE.writing(folder) as db:
            if toml is not None:
                db.execute(
                    "update experiment set ended = ? where origin = 'file' and ended is null "
                    "and name not in (select value from json_each(?))",
                    (time.time(), json.dumps([experiment.name for experiment in wanted])),
                )
            for experiment in wanted:
                begin(db, experiment, "file")

    def start(self, experiment: Experiment) -> None:
        """Begin an experiment, or change the ramp of one. Raises ``ValueError``."""
        with DATABASE.writing(self.folder) as db:
            begin(db, experiment, "api")
        self.read_at = -math.inf

    def end(self, name: str) -> None:
        """Stop assigning; the log stays. Raises ``ValueError`` for an unknown name."""
        with DATABASE.writing(self.folder) as db:
            ended = db.execute(
                "update experiment set ended = ? where name = ?", (time.time(), name)
            )
            if not ended.rowcount:
                raise ValueError(f"there is no experiment {name!r}")
        self.read_at = -math.inf

    def look(self) -> None:
        """Read what runs, if it was not read within the last second."""
        if time.monotonic() - self.read_at < FRESH:
            return
        running = [experiment for experiment, runs in self.all() if runs]
        names = {experiment.name for experiment in running}
        with DATABASE.reading(self.folder) as db:
            verdicts = db.execute("select experiment, adapter, e from verdict").fetchall()
        self.running = {experiment.model: experiment for experiment in running}
        self.worse_adapters = {
            adapter: f"{adapter} did worse in the experiment {name} (E = {e:.3g})"
            for name, adapter, e in verdicts
            if name in names
        }
        self.read_at = time.monotonic()

    def assign(self, model: str, user: str | None, tenant: str = "local") -> Assignment | None:
        """The arm of a user who asks for a model; None outside experiments and without a user."""
        self.look()
        experiment = self.running.get(model)
        if experiment is None or not user or experiment.tenant not in ("", tenant):
            return None
        unit = experiment.unit(user, tenant)
        arm = experiment.arm(unit)
        return None if arm is None else Assignment(experiment.name, arm, experiment.arms[arm], unit)

    def record(self, drawn: Assignment, request: str, tenant: str = "local") -> None:
        """Log that a request was given its arm, before it is answered."""
        row = (tenant, request, drawn.experiment, drawn.unit, drawn.arm, time.time())
        with DATABASE.writing(self.folder) as db:
            db.execute("insert or ignore into exposure values (?, ?, ?, ?, ?, ?)", row)

    def outcome(self, request: str, score: float, tenant: str = "local") -> tuple[str, str] | None:
        """How a request went, 0 (badly) to 1; (experiment, arm), or None if it was in none.

        The first score stands; a repeated one is no error. Raises ``ValueError`` for another score
        or one that is no number from 0 to 1.
        """
        if not 0 <= score <= 1:
            raise ValueError(f"expected a score from 0 (bad) to 1 (good), got {score!r}")
        key = (tenant, request)
        with DATABASE.writing(self.folder) as db:
            exposure = db.execute(
                "select experiment, arm from exposure where (tenant, request) = (?, ?)", key
            ).fetchone()
            if exposure is None:
                return None
            db.execute(
                "insert or ignore into outcome values (null, ?, ?, ?, ?)",
                (*key, score, time.time()),
            )
            (first_score,) = db.execute(
                "select score from outcome where (tenant, request) = (?, ?)", key
            ).fetchone()
            if first_score != score:
                raise ValueError(
                    f"request {request!r} has the score {first_score:g} already, got {score:g}"
                )
            self.judge(db, exposure[0])
        return exposure

    def judge(self, db: Any, name: str) -> None:
        """Note arms that are shown to be worse than the control: E ≥ 1/α, one-sided."""
        experiment = stored(db, name)
        if experiment.champion:
            return
        for found in self.compared(db, experiment):
            e = e_value(found.losses, found.wins, one_sided=True)
            if e >= (len(experiment.arms) - 1) / experiment.alpha:
                row = (name, found.adapter, min(e, 1e300), time.time())
                db.execute("insert or ignore into verdict values (?, ?, ?, ?)", row)

    def worse(self, adapter: str) -> str | None:
        """A sentence if a running experiment has shown an adapter to be worse than its control."""
        self.look()
        return self.worse_adapters.get(adapter)

    def evidence(self, name: str, points: int = 0) -> list[Comparison]:
        """Each arm beside the control, now; with ``points`` also as it came to be."""
        with DATABASE.reading(self.folder) as db:
            return self.compared(db, stored(db, name), points)

    def compared(self, db: Any, experiment: Experiment, points: int = 0) -> list[Comparison]:
        """``compare`` of what the log holds."""
        query = "select arm, count(distinct unit) from exposure where experiment = ? group by arm"
        users = dict(db.execute(query, (experiment.name,)).fetchall())
        verdict_of = {arm: e for arm, (e, _) in verdicts(db, experiment).items()}
        return compare(experiment, users, first_outcomes(db, experiment), points, verdict_of)

    def outcomes(self, name: str) -> list[tuple[str, float]]:
        """(arm, score) of each user's first outcome, in the order in which they came."""
        with DATABASE.reading(self.folder) as db:
            return first_outcomes(db, stored(db, name))

    def all(self) -> list[tuple[Experiment, bool]]:
        """Each experiment, the newest first, and whether it runs."""
        query = "select name, fields, ended is null from experiment order by started desc"
        with DATABASE.reading(self.folder) as db:
            rows = db.execute(query).fetchall()
        return [
            (Experiment.of(name, json.loads(fields)), bool(runs)) for name, fields, runs in rows
        ]


def first_outcomes(db: Any, experiment: Experiment) -> list[tuple[str, float]]:
    """(arm, score) of each user's first outcome, of an arm with a verdict until then."""
    verdict_at = {arm: at for arm, (_, at) in verdicts(db, experiment).items()}
    rows = db.execute(FIRST_OUTCOMES, (experiment.name,)).fetchall()
    control = next(iter(experiment.arms))
    pairs_left = {  # an arm that was ahead of the control gains no pairs after its verdict
        arm: sum(other == control and at <= end for other, _, at, _ in rows)
        for arm, end in verdict_at.items()
    }
    counted = []
    for arm, score, at, _ in rows:
        if arm in pairs_left:
            if at > verdict_at[arm] or not pairs_left[arm]:
                continue
            pairs_left[arm] -= 1
        counted.append((arm, score))
    return counted


def verdicts(db: Any, experiment: Experiment) -> dict[str, tuple[float, float]]:
    """(E, when) of each arm that was shown to be worse than the control."""
    query = "select adapter, e, at from verdict where experiment = ?"
    found = {adapter: (e, at) for adapter, e, at in db.execute(query, (experiment.name,))}
    _, *others = experiment.arms.items()  # the control has none, also where an arm is the same
    return {arm: found[adapter] for arm, adapter in others if adapter in found}


def stored(db: Any, name: str) -> Experiment:
    """An experiment of the log. Raises ``ValueError``."""
    row = db.execute("select fields from experiment where name = ?", (name,)).fetchone()
    if row is None:
        known = [each for (each,) in db.execute("select name from experiment")]
        hint = did_you_mean(name, known, "none was started" if not known else f"known: {known}")
        raise ValueError(f"there is no experiment {name!r}: {hint}")
    return Experiment.of(name, json.loads(row[0]))


def begin(db: Any, experiment: Experiment, origin: str) -> None:
    """Write an experiment into the log. Raises ``ValueError``.

    Of one that runs only the ramp may change: other arms or shares are other odds, for which the
    outcomes so far are no evidence.
    """
    name, now = experiment.name, time.time()
    query = "select fields, ended from experiment where name = ?"
    fields, ended = db.execute(query, (name,)).fetchone() or (None, None)
    if ended is not None:
        raise ValueError(f"experiment {name!r} has ended: give the new one another name")
    if fields is not None and {**json.loads(fields), "ramp": 0} != {**experiment.fields, "ramp": 0}:
        raise ValueError(f"experiment {name!r} runs with other settings: only its ramp may change")
    others = db.execute("select name, fields from experiment where ended is null").fetchall()
    for other, theirs in others:
        if other != name and json.loads(theirs)["model"] == experiment.model:
            raise ValueError(
                f"{experiment.model!r} has the experiment {other!r} already: end it first"
            )
    db.execute(
        "insert into experiment values (?, ?, ?, ?, null) "
        "on conflict (name) do update set fields = excluded.fields",
        (name, json.dumps(experiment.fields), origin, now),
    )
