"""How a run looks while it runs: a bar on a terminal and in a notebook, lines anywhere else.

    terminal             a bar with loss, speed and the time that is left
    notebook             the same on one line, which is written anew
    file, pipe, nohup    a line every ``LINE_EVERY`` seconds: step, loss, tokens/s, time left

Each validation has a line of its own. Everything goes to standard error.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

LINE_EVERY = 30.0  # seconds
CELL_EVERY = 0.5  # seconds between two states of a notebook's line


class Progress:
    """A context: ``advance`` follows a step, ``validated`` a validation, ``say`` shows a message.

    The speed is in tokens of examples, without padding.
    """

    def __init__(self, steps: int, show: bool = True):
        self.steps, self.show = steps, show
        self.bar: Any = None
        self.cell: Any = None  # a notebook's display
        self.began = self.shown = time.monotonic()
        self.first: int | None = None  # the first step of this run, which may be a resumed one
        self.tokens = 0  # since the last line

    def __enter__(self) -> Progress:
        if self.show and in_notebook():
            from IPython.display import display

            self.cell = display({"text/plain": "training"}, raw=True, display_id=True)
        elif self.show and sys.stderr.isatty():
            self.bar, self.task = start_bar(self.steps)
        self.began = self.shown = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, step: int, record: dict[str, Any]) -> None:
        """One step is done."""
        self.tokens += record["tokens"]
        self.first = step if self.first is None else self.first
        if self.bar is not None:
            speed = record["tokens"] / max(record["seconds"], 1e-9)
            self.bar.update(self.task, completed=step, loss=record["loss"], speed=speed)
            return
        now, every = time.monotonic(), LINE_EVERY if self.cell is None else CELL_EVERY
        if now - self.shown < every and not (self.cell and step == self.steps):
            return
        line = self.line(step, record["loss"], now)
        if self.cell is not None:
            self.cell.update({"text/plain": f"{drawn(step, self.steps)} {line}"}, raw=True)
        else:
            self.say(line)
        self.shown, self.tokens = now, 0

    def line(self, step: int, loss: float, now: float) -> str:
        """Step, loss, speed since the last line, and the time left at this run's pace."""
        speed = self.tokens / max(now - self.shown, 1e-9)
        done = step - (self.first or step) + 1
        left = timedelta(seconds=round((now - self.began) / done * (self.steps - step)))
        return f"step {step:>5}/{self.steps}  loss {loss:.3f}  {speed:,.0f} tokens/s  {left} left"

    def validated(self, record: dict[str, Any]) -> None:
        """A validation is done: its loss, exact match and sample, on a line."""
        parts = [f"step {record['step']:>5}  held-out loss {record['valid_loss']:.3f}"]
        if "exact_match" in record:
            parts.append(f"exact match {record['exact_match']:.0%}")
        if "sample" in record:
            answer = record["sample"]["answer"]
            parts.append(f"“{answer[:59]}…”" if len(answer) > 60 else f"“{answer}”")
        self.say("  ".join(parts))

    def say(self, message: str) -> None:
        """A line above the bar, or on standard error."""
        if self.bar is not None:
            self.bar.console.print(message, markup=False, highlight=False)
        elif self.show:
            print(message, file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this; only a loaded IPython can tell."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def start_bar(steps: int) -> tuple[Any, Any]:
    """A bar of rich's on standard error, and its task."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.start()
    return bar, bar.add_task("training", total=steps, loss=float("nan"), speed=0.0)


def drawn(step: int, steps: int, width: int = 24) -> str:
    """A bar in letters.

    >>> drawn(6, 12, width=4)
    '[##..]'
    """
    full = width * step // steps
    return f"[{'#' * full}{'.' * (width - full)}]"
