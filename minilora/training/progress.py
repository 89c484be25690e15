"""How a run looks while it runs: a bar on a terminal, elsewhere one line for each validation."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """A context: ``advance`` follows a step, ``validated`` a validation, ``say`` shows a message.

    The bar shows loss, speed and the time that is left.
    """

    def __init__(self, steps: int, show: bool = True):
        self.steps, self.show = steps, show
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task(
                "training", total=self.steps, loss=float("nan"), speed=0.0
            )
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, step: int, record: dict[str, Any]) -> None:
        """One step is done."""
        if self.bar is not None:
            speed = record["tokens"] / max(record["seconds"], 1e-9)
            self.bar.update(self.task, completed=step, loss=record["loss"], speed=speed)

    def validated(self, record: dict[str, Any]) -> None:
        """A validation is done: its loss, exact match and sample, on a line."""
        parts = [f"step {record['step']:>5}  held-out loss {record['valid_loss']:.3f}"]
        if "exact_match" in record:
            parts.append(f"exact match {record['exact_match']:.0%}")
        if "sample" in record:
            parts.append(f"“{record['sample']['answer'][:60]}”")
        self.say("  ".join(parts))

    def say(self, message: str) -> None:
        """A line above the bar, or on standard error."""
        if self.bar is not None:
            self.bar.console.print(message, markup=False, highlight=False)
        elif self.show:
            print(message, file=sys.stderr, flush=True)
