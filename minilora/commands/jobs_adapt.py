"""``minilora jobs adapt spec.toml``: users' corrections in, the next champion out, if the gate lets
it.

    minilora jobs adapt spec.toml --add corrections.jsonl    take them in, and review
    minilora jobs adapt spec.toml                            a round, if one is due; then watch
    minilora jobs adapt spec.toml --forever                  again and again, until Ctrl-C
    minilora jobs adapt spec.toml --forever --state server   with live pairs of a server's users

The spec is that of ``minilora jobs run``; ``evaluation.regression`` is what must stay right. A
correction is a line of JSON with ``source``, ``request`` and ``correction``, and maybe ``answer``,
``context``, ``topic`` and ``adapter``. A canary is an example with a ``topic``. The trainings are
jobs: ``minilora jobs list`` shows them, and a round that was killed goes on where it was.

``minilora serve --feedback FOLDER`` puts what its users correct into the same folder; with
``--state``, the server's, a share of its users gets the challenger, and after a promotion the one
before, so that their scores decide (jobs/live.py).
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

from ..text import columns
from .options import check_folder

WINDOW, WINDOWS = 500, 40  # characters of the base's held-out prose, and how many windows
PAUSE = 60.0  # seconds between two looks


def add_adapt_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora jobs adapt``."""
    add = parser.add_argument
    add("spec", type=Path, help="spec.toml")
    add("--hub", type=Path, default=Path("hub"), help="where adapters are (default: hub)")
    add("--feedback", type=Path, default=Path("feedback"), help="its folder (default: feedback)")
    about = "the server's --state: a share of its users tries the other adapter"
    add("--state", type=Path, metavar="FOLDER", help=about)
    add("--share", type=float, default=0.2, help="how large a share (default: %(default)s)")
    about = "whose corrections: a tenant of the server's keys (default: that of --tenant)"
    add("--feedback-of", metavar="TENANT", help=about)
    add("--add", type=Path, metavar="FILE", help="take in corrections, one JSON object a line")
    add("--reserve", type=Path, metavar="FILE", help="more held-out examples, which judge")
    add("--canaries", type=Path, metavar="FILE", help="examples with a topic, which stay secret")
    add("--after", type=int, default=50, help="new examples that make a round due (%(default)s)")
    add("--days", type=float, default=7.0, help="or so many days, with one new (%(default)s)")
    add("--quarantine", type=float, default=24.0, help="hours (default: %(default)s)")
    add("--cap", type=int, default=200, help="examples of one source at most (%(default)s)")
    add("--now", action="store_true", help="a round even if none is due")
    add("--forever", action="store_true", help=f"look every {PAUSE:.0f} s, until Ctrl-C")


def adapt(queue: Any, options: argparse.Namespace) -> int:
    """``minilora jobs adapt``. Status 1 if a round was rejected."""
    from ..hub import Hub
    from ..jobs import FeedbackStore, Loop, read_spec

    for name in ("feedback", "state"):
        if (folder := getattr(options, name)) is not None:
            check_folder(folder, f"--{name}")
    spec, live = read_spec(options.spec), live_of(options)
    hours, tenant = options.quarantine * 3600, options.tenant
    whose = options.feedback_of or tenant
    store = FeedbackStore(options.feedback, whose, quarantine=hours, cap=options.cap)
    if options.add is not None:
        states = [store.add(each) for each in corrections(options.add, store)]
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"{options.add}: {told}")
    show_review(store)
    if options.add is not None and not (options.now or options.forever):
        print(f"Next: minilora jobs adapt {options.spec} --feedback {options.feedback}")
        return 0
    loop = Loop(Hub(options.hub, tenant), store, recipe_of(spec, options), queue, live)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: loop.stop.set())
    if not options.forever:
        return int(look(loop, options.now) == "reject")
    look_forever(loop, loop.stop, options.now, PAUSE)
    return 0


def live_of(options: argparse.Namespace) -> Any:
    """Live pairs of a server's users, where its folder was named."""
    if options.state is None:
        return None
    from ..jobs.corrections import DEFAULT
    from ..jobs.live import Live
    from ..serving.experiments import Experiments
    from ..serving.tenants import LOCAL

    if options.tenant != DEFAULT:
        raise ValueError(
            f"--state: a server serves the hub's adapters of tenant {DEFAULT!r}, and --tenant is "
            f"{options.tenant!r}: leave --tenant out, and name whose users with --feedback-of"
        )
    whose = options.feedback_of or DEFAULT
    experiments = Experiments(options.state)
    return Live(experiments, options.share, LOCAL.name if whose == DEFAULT else whose)


def look_forever(loop: Any, stop: threading.Event, now: bool, pause: float) -> None:
    """Look again and again, until ``stop`` is set; what fails is told, and tried at the next.

    ``stop`` is the loop's own, so that it also ends a training, after its step: the job goes back
    into the queue, and the next run of this command goes on with it. So does Ctrl-C.
    """
    while True:
        try:
            look(loop, now)
        except (ValueError, OSError) as error:  # a job that was cancelled, a disk that is full
            if stop.is_set():
                print(f"stopped: {error}; the same command goes on from there")
                return
            print(f"this look failed: {error}")
        now = False
        if stop.wait(pause):
            return
        loop.store.review()


def look(loop: Any, now: bool = False) -> str:
    """Watch what serves, ask about what waits, and do a round if one is due; returns its word."""
    champion = loop.begin()
    if back := loop.watch():
        print(f"rolled back: {back} serves again")
    if word := loop.settle():
        print(f"the challenger: {word}")
    due = loop.due()
    if not due and not now:
        print(f"{champion.spec} serves; no round is due")
        return word
    print(f"a round: {due or 'asked for'}")
    done = loop.round()
    print("\n".join(f"  {line}" for line in done.told))
    print(f"{loop.begin().spec} serves")
    return done.word


def show_review(store: Any) -> None:
    """What was let out of quarantine, and where answers fail."""
    review = store.review()
    kept = "".join(f", {count} {reason}" for reason, count in review.kept.items())
    print(f"{review.accepted} to learn, {review.heldout} to judge by{kept}")
    failing = [each for each in store.slices() if each.failed][:8]
    if failing:
        rows = [("topic", "source", "corrected", "of")]
        rows += [(s.topic or "-", s.source, str(s.failed), str(s.count)) for s in failing]
        print("\n".join(columns(rows)))


def corrections(file: Path, store: Any) -> list[Any]:
    """The corrections of a file. Raises ``ValueError`` that names a bad line."""
    from ..jobs import Feedback
    from ..training.data_files import rows_of

    read = []
    for row in rows_of(file):
        try:
            if row.problem:
                raise ValueError(row.problem)
            read.append(Feedback(**{"adapter": "", **row.value, "tenant": store.tenant}))
            store.check(read[-1])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{row.where}: {error}. Nothing was taken in") from None
    return read


def recipe_of(spec: Any, options: argparse.Namespace) -> Any:
    """What the loop keeps good, as the spec says it. Raises ``ValueError`` without a regression
    set.
    """
    from ..jobs.recipe import Recipe
    from ..training.evaluation import PROSE
    from ..training.readers import read_examples

    if spec.evaluation.regression is None:
        raise ValueError(
            f"{options.spec}: evaluation.regression is missing: the loop needs a file of examples "
            "that must stay right"
        )
    prose, tables = PROSE.read_text(encoding="utf-8"), spec.as_dict()
    return Recipe(
        spec.name,
        read_examples(spec.data.train, skip_bad=spec.data.skip_bad).examples,
        read_examples(spec.evaluation.regression).examples,
        canaries=canaries_of(options.canaries),
        prose=[prose[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)],
        reserve=reserve_of(options.reserve),
        **{name: tables.get(name, {}) for name in ("base", "method", "train")},
        replay=tables.get("replay"),
        after=options.after,
        every=options.days * 86_400,
    )


def reserve_of(file: Path | None) -> list[Any]:
    """The questions of a file. Raises ``ValueError`` that names a line which is none."""
    from ..training.data_files import rows_of
    from ..training.data_forms import read_row
    from ..training.examples import Example

    reserve = []
    for row in rows_of(file) if file else ():
        try:
            if row.problem:
                raise ValueError(row.problem)
            example = read_row(row.value).example
            if not isinstance(example, Example):
                kind = type(example).__name__.lower()
                raise ValueError(f"the exam takes a question and its answer, got a {kind}")
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
        reserve.append(example)
    return reserve


def canaries_of(file: Path | None) -> dict[str, list[Any]]:
    """Examples by their ``topic``; without a file none."""
    from ..training.data_files import rows_of
    from ..training.data_forms import read_row

    canaries: dict[str, list[Any]] = {}
    for row in rows_of(file) if file else ():
        value = dict(row.value) if isinstance(row.value, dict) else row.value
        topic = str(value.pop("topic", "all")) if isinstance(value, dict) else "all"
        try:
            canaries.setdefault(topic, []).append(read_row(value).example)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
    return canaries
