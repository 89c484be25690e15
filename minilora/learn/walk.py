"""The terminal walk: one cell at a time, a prediction before the run, exercises checked again with Enter.

Without a terminal (a pipe, a log) it runs straight through and asks nothing. Every step is recorded before the next, so
that a lesson goes on where it was left; the code cells before that place run again, silently.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from pathlib import Path
from typing import Any

from .cells import Cell, Lesson, read_choices, same_answer
from .figures import Stage, on_stage
from .judge import LIMIT, judge_file
from .record import Record
from .run import Session
from .terminal import BAR, Counted, code, make_console, open_file, prose
from .workspace import open_desk, write_solutions

SHOWN = 10  # lines of what the learner's code printed


class Left(Exception):
    """The learner has left the lesson."""


class Walk:
    """A lesson in the terminal. ``go`` walks it; progress and answers lie in ``folder``."""

    def __init__(
        self, lesson: Lesson, folder: Path, asking: bool | None = None, limit: float = LIMIT
    ):
        self.lesson, self.folder, self.limit = lesson, folder, limit
        self.asking = (sys.stdin.isatty() and sys.stdout.isatty()) if asking is None else asking
        self.console, self.session = make_console(), Session(lesson)
        self.stage = Stage(folder / "figures", lesson.slug, quiet=True)
        self.record = Record(folder)
        self.entry = self.record.lesson(lesson.slug)
        self.waiting: list[Cell] = []
        self.lines = 0  # on the screen since the last key
        self.since = time.monotonic()
        self.reached = int(self.entry["cell"])

    def go(self) -> bool:
        """Walk from where the learner was to the end; True when the lesson was finished, False when it was left."""
        if self.record.note:
            self.say(f"[yellow]{self.record.note}[/]")
        if self.entry["finished"] or self.reached >= len(self.lesson.cells):
            self.entry.update(cell=0, finished=False)
            self.reached = 0
        try:
            with on_stage(self.stage):
                self.catch_up()
                for index in range(self.reached, len(self.lesson.cells)):
                    self.step(index)
                    self.reached = index + 1
                    self.keep()
        except (Left, EOFError, KeyboardInterrupt):
            self.keep()
            self.console.print(f"\nLeft. Go on with: [bold]minilora learn {self.lesson.number}[/]")
            return False
        self.entry["finished"] = True
        self.keep()
        self.farewell()
        return True

    def keep(self) -> None:
        """Write down where we are and how long it took."""
        if not self.asking:
            return  # a run through a pipe is no learning
        now = time.monotonic()
        self.entry.update(
            cell=self.reached, seconds=round(self.entry["seconds"] + now - self.since, 1)
        )
        self.since = now
        self.record.save()

    def catch_up(self) -> None:
        """Run the code before the place of resumption, silently."""
        before = [
            cell
            for cell in self.lesson.cells[: self.reached]
            if cell.kind in ("code", "exercise") and not cell.checks
        ]
        if self.reached:
            self.say(f"[dim]{self.lesson.title}: going on at cell {self.reached + 1} of {len(self.lesson.cells)}. "
                     "The code before it runs again.[/]")  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            for cell in before:
                self.session.run(cell)
        last = next(
            (n for n in range(self.reached - 1, -1, -1) if self.lesson.cells[n].kind == "code"), -1
        )
        asked = [
            cell for cell in self.lesson.cells[last + 1 : self.reached] if cell.kind == "predict"
        ]
        self.waiting = [cell for cell in asked if cell.name in self.entry["predictions"]]
        for cell in self.lesson.cells[last + 1 : self.reached]:  # what was being read
            if cell.kind == "markdown":
                self.put(prose(self.session.prose(cell)))
            elif cell.kind == "exercise":
                self.put(code(cell.text))
            elif cell in self.waiting:
                said = self.entry["predictions"][cell.name]["said"] or "nothing"
                self.put(
                    prose(f"**Your prediction.** {self.session.prose(cell)}\n\nYou said: {said}")
                )

    def step(self, index: int) -> None:
        """Show one cell and do what it asks for."""
        cell = self.lesson.cells[index]
        if cell.kind == "markdown":
            self.put(prose(self.session.prose(cell)))
        elif cell.kind == "predict":
            self.predict(cell)
        elif cell.kind == "exercise":
            self.session.run(cell)
            self.put(code(cell.text))
        elif cell.checks:
            self.exercise(cell.checks)
        elif cell.kind == "code":
            self.run(cell)

    def run(self, cell: Cell) -> None:
        """Show a code cell, wait for Enter, run it, show its output and figures, compare the predictions."""
        self.put(code(cell.text))
        self.pause("Enter runs it")
        seen, start = len(self.stage.shown), time.monotonic()
        width = self.console.width - len(BAR) if self.asking else 10**6
        with contextlib.redirect_stdout(Counted(sys.stdout, width)) as said:
            self.session.run(cell)
            said.close_line()
        if said.lines:
            self.say("")
        self.lines += said.lines
        took = time.monotonic() - start
        for shown in self.stage.shown[seen:]:
            keys = "  (f and Enter opens it)" if self.asking else ""
            self.say(f"[green]figure[/] {shown.light}{keys}\n[dim]{shown.alt}[/]")
        if took > 2:
            self.say(f"[dim]took {took:.0f} s[/]")
        for asked in self.waiting:
            self.compare(asked)
        if self.waiting or took > 2 or len(self.stage.shown) > seen:
            self.say("")
        self.waiting = []

    def predict(self, cell: Cell) -> None:
        """Ask for a prediction and keep it."""
        self.put(prose("**Your prediction.** " + self.session.prose(cell)))
        self.waiting.append(cell)
        if not self.asking:
            return
        said = self.ask("Your guess (Enter: none)")
        letters = list(read_choices(cell.question))
        while said and letters and not re.match(rf"[{''.join(letters)}](\W|$)", said.lower()):
            self.say(f"{', '.join(letters[:-1])} or {letters[-1]}?")
            said = self.ask("Your guess (Enter: none)")
        self.entry["predictions"][cell.name] = {"said": said}
        self.keep()

    def compare(self, cell: Cell) -> None:
        """Say how a prediction fared."""
        from rich.markup import escape

        answer = self.session.answer(cell)
        number = f"{answer:.4g}" if isinstance(answer, float) else str(answer)
        shown = read_choices(self.session.prose(cell)).get(number, number)
        kept = self.entry["predictions"].get(cell.name)
        if not self.asking or kept is None or not str(kept.get("said", "")):
            self.say(f"[cyan]The answer to the prediction:[/] {escape(shown)}")
            return
        kept.update(answer=answer, right=same_answer(str(kept["said"]), answer))
        verdict = "[green]You were right[/]" if kept["right"] else "[yellow]Not as predicted[/]"
        self.say(f"{verdict}: you said {escape(str(kept['said']))}, it is {escape(shown)}.")

    def exercise(self, name: str) -> None:
        """Let the learner edit their file and check it until it passes, is skipped, or its solution is shown."""
        if not self.asking:
            self.say(
                f"[dim]{name} is for you to build: minilora learn {self.lesson.number}, in a terminal.[/]"
            )
            return
        file, entry = (
            open_desk(self.lesson, self.folder),
            self.record.exercise(self.lesson.slug, name),
        )
        self.say(f"Write [bold]{name}[/] in [bold]{file}[/]; save it, then press Enter.")
        while True:
            key = self.ask("Enter checks · h hint · s skip · r reveal · q leave").lower()
            if key == "h":
                self.hint(name, entry)
            elif key in ("s", "r"):
                if key == "r":
                    reveal(self.record, self.lesson, name, self.console)
                return
            elif key == "":
                if self.judge(name, file, entry):
                    return
            else:
                self.say(f"Your code goes into {file}; save it there and press Enter here.")

    def hint(self, name: str, entry: dict[str, Any]) -> None:
        """The next hint; after the third, all three again."""
        hints = self.lesson.hints(name)
        entry["hints"] = min(len(hints), entry["hints"] + 1)
        self.keep()
        self.put(prose(f"**Hint {entry['hints']} of {len(hints)}.** {hints[entry['hints'] - 1]}"))

    def judge(self, name: str, file: Path, entry: dict[str, Any]) -> bool:
        """Check the learner's answer in a process of its own; True when it passed."""
        from rich.text import Text

        with (
            self.console.status("checking …")
            if self.console.is_terminal
            else contextlib.nullcontext()
        ):
            verdict = judge_file(self.lesson, name, file, self.limit)
        entry["tries"] += 1
        entry["passed"] = entry["passed"] or verdict.status == "passed"
        self.keep()
        if verdict.said:
            lines = verdict.said.rstrip().splitlines()
            where = f", at the end ({SHOWN} lines)" if len(lines) > SHOWN else ""
            self.console.print(
                "\n".join([f"your code printed{where}:", *lines[-SHOWN:]]),
                style="dim",
                markup=False,
            )
        if verdict.status == "passed":
            earned = [n for n, e in self.entry["exercises"].items() if e["passed"] or e["revealed"]]
            saved = write_solutions(self.lesson, self.folder, earned)
            self.say(f"[green]Passed.[/] A solution to compare with yours: {saved}")
            return True
        title = {"to do": "Still to do:", "wrong": "Not yet.", "timeout": "Stopped:"}.get(
            verdict.status, "It does not run:"
        )
        message = verdict.message or f"fill in {name} in {file}."
        self.console.print(Text.assemble((f"{title} ", "yellow"), " ".join(message.split())))
        return False

    def farewell(self) -> None:
        """What was learned, and what is next."""
        predictions = [p for p in self.entry["predictions"].values() if "right" in p]
        passed = sum(bool(e["passed"]) for e in self.entry["exercises"].values())
        if self.asking:
            right = sum(bool(p["right"]) for p in predictions)
            guessed = f"Predictions right: {right} of {len(predictions)}. " if predictions else ""
            self.say(f"[bold green]Lesson {self.lesson.number} is done.[/] {guessed}"
                     f"Exercises passed: {passed} of {len(self.lesson.exercises)}.")  # fmt: skip
            last = max(
                int(path.name[:2]) for path in self.lesson.path.parent.glob("[0-9][0-9]_*.py")
            )
            following = f"[bold]minilora learn {self.lesson.number + 1}[/], or "
            self.say(
                f"Next: {following if self.lesson.number < last else ''}[bold]minilora learn[/] for the course."
            )

    def put(self, drawn: Any) -> None:
        """Print a block, after a pause when it would push what was not read yet off the screen."""
        height = len(self.console.render_lines(drawn, self.console.options, pad=False)) + 1
        if self.asking and self.lines > 4 and self.lines + height > self.console.size.height - 1:
            self.pause("Enter goes on")
        self.console.print(drawn)
        self.console.print()
        self.lines += height

    def say(self, text: str) -> None:
        """Print a line or two of ours."""
        self.console.print(text)
        self.lines += 1 + text.count("\n")

    def pause(self, what: str) -> None:
        """Wait for Enter; f opens the last figure."""
        figure = " · f figure" if self.stage.shown else ""
        while self.asking and (key := self.ask(f"{what}{figure} · q leave").lower()):
            if key != "f" or not self.stage.shown:
                self.say(
                    "Here Enter goes on and q leaves, to come back later. Hints are for the exercises (h)."
                )
            else:
                path = self.stage.shown[-1].light
                if not open_file(path):
                    self.say(f"No viewer to be had here; the figure is {path.resolve()}")

    def ask(self, what: str) -> str:
        """A line from the learner; ``Left`` on q."""
        self.console.print(f"[dim]{what}[/] [bold]>[/] ", end="")
        said = input().strip()
        self.lines = 1
        if said.lower() in ("q", "quit"):
            raise Left
        return said


def reveal(record: Record, lesson: Lesson, name: str, console: Any) -> None:
    """Show a solution, write it out, and keep that it was shown."""
    record.exercise(lesson.slug, name)["revealed"] = True
    record.save()
    earned = [
        n
        for n, e in record.lesson(lesson.slug)["exercises"].items()
        if e["passed"] or e["revealed"]
    ]
    saved = write_solutions(lesson, record.folder, earned)
    console.print(code(saved.read_text(encoding="utf-8")))
    console.print(f"Saved as {saved}.")
