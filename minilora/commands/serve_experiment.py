"""``minilora serve experiment list | show``: the evidence of experiments, as often as one likes.

Reads the server's log; the server may run meanwhile. Looking does not spoil anything
(serving/evidence.py says why).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..text import columns
from .options import check_folder, check_picture
from .serve_keys import add_state_option

POINTS = 60
EPILOG = """examples:
  minilora serve experiment list
  minilora serve experiment show greeting --out evidence.svg"""


def add_experiment(actions: Any) -> None:
    """Add ``experiment`` to the sub-commands of ``minilora serve``."""
    purpose = "the evidence of A/B experiments: list, show"
    form = argparse.RawDescriptionHelpFormatter
    parser = actions.add_parser(
        "experiment", help=purpose, description=purpose, epilog=EPILOG, formatter_class=form
    )
    made = parser.add_subparsers(dest="experiment_action", metavar="list | show", required=True)
    made.add_parser("list", help="all experiments")
    show = made.add_parser("show", help="one: a table, and a picture with --out")
    show.add_argument("name")
    show.add_argument("--out", type=Path, help="the evidence over time, .png or .svg")
    show.add_argument("--dark", action="store_true", help="the picture on dark paper")
    for each in made.choices.values():
        add_state_option(each)


def run_experiment(options: argparse.Namespace) -> int:
    """``minilora serve experiment``. Raises ``ValueError``."""
    from ..serving.experiments import DATABASE, Experiments

    check_folder(options.state, "--state")
    if not (options.state / DATABASE.file).exists():
        raise ValueError(f"no experiment was started in {options.state}: see serve --experiments")
    if getattr(options, "out", None) is not None:
        check_picture(options.out)
    experiments = Experiments(options.state)
    if options.experiment_action == "list":
        rows = [
            (each.name, each.model, "runs" if runs else "ended", f"{each.ramp:.0%} of the users")
            for each, runs in experiments.all()
        ]
        print("\n".join(columns(rows)) if rows else "no experiment yet")
        return 0
    comparisons = experiments.evidence(options.name, POINTS)
    for found in comparisons:
        show(found, options, alone=len(comparisons) == 1)
    return 0


def show(found: Any, options: argparse.Namespace, alone: bool) -> None:
    """One arm beside the control: the table, the sentence, the picture."""
    arms = f"{found.arm} ({found.adapter}) beside {found.control}"
    print(f"{found.experiment}: {arms}")
    print(
        f"users {found.users[1]} beside {found.users[0]}; the planned split: E = {found.split:.3g}"
    )
    print(f"of {found.pairs} pairs {found.wins} won, {found.losses} lost, the rest were equal")
    step = max(1, len(found.points) // 8)
    shown = [*found.points[:-1][::step], *found.points[-1:]]
    head = ("pairs", "E", "mSPRT", "difference", "interval at all pairs at once")
    rows = [
        (str(p.pairs), f"{p.e:.3g}", f"{p.msprt:.3g}", f"{p.difference:+.3f}",
         f"{p.low:+.3f} to {p.high:+.3f}")
        for p in shown
    ]  # fmt: skip
    print("\n".join(columns([head, *rows])))
    print(found.verdict)
    if options.out is not None and found.points:
        out = options.out if alone else options.out.with_stem(f"{options.out.stem}-{found.arm}")
        print(f"drawn: {draw(found, out, options.dark)}")


def draw(found: Any, out: Path, dark: bool) -> Path:
    """The picture of one arm beside the control."""
    from ..plots.evidence_charts import evidence_chart
    from ..plots.style import save_figure

    table = [(p.pairs, p.e, p.msprt, p.difference, p.low, p.high) for p in found.points]
    title = f"{found.experiment}: {found.arm} or {found.control}?"
    figure = evidence_chart(title, *zip(*table, strict=True), found.limit, dark=dark)
    return save_figure(figure, out)
