"""``show``: a lesson's figure, wherever the lesson runs.

A lesson calls ``show(figure, "one sentence on the figure")`` and does not know who looks. Run with
``python``, the figure is saved and its path is printed; a notebook shows it under the cell; the
walk keeps it to open on request; the book also takes its dark face. Whoever looks sets a ``Stage``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..plots.style import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shown:
    """A figure on disk: its light face, its dark face if one was drawn, and its alt text."""

    light: Path
    dark: Path | None
    alt: str


@dataclass
class Stage:
    """The folder for figures, as ``name-1.png``, ``name-2.png``, …; ``shown`` lists them."""

    folder: Path
    name: str = "figure"
    dark: bool = False
    quiet: bool = False
    shown: list[Shown] = field(default_factory=list)


STAGE: ContextVar[Stage | None] = ContextVar("STAGE", default=None)


@contextmanager
def on_stage(stage: Stage) -> Iterator[Stage]:
    """A context in which ``show`` uses this stage."""
    token = STAGE.set(stage)
    try:
        yield stage
    finally:
        STAGE.reset(token)


def show(figure: Figure, alt: str) -> None:
    """Save a figure and print its path.

    ``alt`` describes it in a sentence, for readers who cannot see it. Raises ``ValueError`` for a
    figure without data, or an ``alt`` of fewer than four words.

    >>> from matplotlib.figure import Figure
    >>> show(Figure(), "a line that falls")
    Traceback (most recent call last):
    ValueError: the figure is blank, none of its axes has data: draw first, then show
    """
    if not any(axes.has_data() for axes in figure.axes):
        raise ValueError("the figure is blank, none of its axes has data: draw first, then show")
    if len(alt.split()) < 4:
        raise ValueError(
            f"alt describes the figure in a sentence of four words or more, got {alt!r}"
        )
    stage = STAGE.get()
    if stage is None:
        stage = Stage(Path("minilora-lessons") / "figures", lesson_name())
        STAGE.set(stage)
    number = len(stage.shown) + 1
    light = save_figure(figure, stage.folder / f"{stage.name}-{number}.png")
    again, dark = getattr(figure, "again", None), None
    if stage.dark and again is not None:
        dark = save_figure(again(dark=True), stage.folder / f"{stage.name}-{number}-dark.png")
    stage.shown.append(Shown(light, dark, alt))
    if not stage.quiet and not show_inline(light, alt):
        print(f"figure: {light} ({alt})")


def show_inline(file: Path, alt: str) -> bool:
    """Show a picture under the notebook's cell that runs; False where no notebook runs."""
    ipython = sys.modules.get("IPython")
    if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return False
    from IPython.display import Image, display

    display(Image(filename=str(file), retina=True, metadata={"alt": alt}))
    return True


def lesson_name() -> str:
    """The name of the script that runs, for its figures' names."""
    import __main__

    return Path(getattr(__main__, "__file__", None) or "figure").stem
