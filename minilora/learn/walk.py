"""The terminal walk: one cell at a time, a prediction before the run, exercises checked again with Enter.

Without a terminal (a pipe, a log) it runs straight through and asks nothing. Every step is recorded before the next, so
that a lesson goes on where it was left; the code cells before that place run again, silently.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

from .cells import Cell, Lesson, same_answer
from .desk import open_desk, write_solutions
from .face import code, make_console, open_file, prose
from .judge import LIMIT, judge_file
from .record import Record
from .run import Session
from .stage import Stage, on_stage


class Left(Exception):
    """The learner has left the lesson."""


class Walk:
    """A lesson in the terminal. ``go`` walks it; progress and answers lie in ``folder``."""

    def __init__(self, lesson: Lesson, folder: Path, asking: bool | None = None, limit: float = LIMIT):
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
        self.entry.update(cell=self.reached, seconds=round(self.entry["seconds"] + now - self.since, 1))
        self.since = now
        self.record.save()

    def catch_up(self) -> None:
        """Run the code before the place of resumption, silently."""
        before = [cell for cell in self.lesson.cells[: self.reached] if cell.kind in ("code", "exercise") and not cell.checks]
        if self.reached:
            self.say(f"[dim]{self.lesson.title}: going on at cell {self.reached + 1} of {len(self.lesson.cells)}. "
                     "The code before it runs again.[/]")  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            for cell in before:
                self.session.run(cell)
        last = next((n for n in range(self.reached - 1, -1, -1) if self.lesson.cells[n].kind == "code"), -1)
        asked = [cell for cell in self.lesson.cells[last + 1 : self.reached] if cell.kind == "predict"]
        self.waiting = [cell for cell in asked if cell.name in self.entry["predictions"]]

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
        with contextlib.redirect_stdout(Counted(sys.stdout)) as said:
            self.session.run(cell)
        if said.lines:
            self.say("")
        self.lines += said.lines
        took = time.monotonic() - start
        for shown in self.stage.shown[seen:]:
            keys = "  (f and Enter opens it)" if self.asking else ""
            self.say(f"[green]figure[/] {shown.light}{keys}\n[dim]{shown.alt}[/]")
        if took > 2:
            self.say(f"[dim]{took:.0f} s[/]")
        for asked in self.waiting:
            self.compare(asked)
        self.waiting = []

    def predict(self, cell: Cell) -> None:
        """Ask for a prediction and keep it."""
        self.put(prose("**Your prediction.** " + self.session.prose(cell)))
        self.waiting.append(cell)
        if not self.asking:
            return
        said = self.ask("Your guess (Enter: none)")
        self.entry["predictions"][cell.name] = {"said": said}
        self.keep()

    def compare(self, cell: Cell) -> None:
        """Say how a prediction fared."""
        answer = self.session.answer(cell)
        shown = f"{answer:.4g}" if isinstance(answer, float) else str(answer)
        kept = self.entry["predictions"].get(cell.name)
        if not self.asking or kept is None or not str(kept.get("said", "")):
            self.say(f"[cyan]The answer to the prediction:[/] {shown}")
            return
        kept.update(answer=answer, right=same_answer(str(kept["said"]), answer))
        verdict = "[green]You were right[/]" if kept["right"] else "[yellow]Not as predicted[/]"
        self.say(f"{verdict}: you said {kept['said']}, it is {shown}.")

    def exercise(self, name: str) -> None:
        """Let the learner edit their file and check it until it passes, is skipped, or its solution is shown."""
        if not self.asking:
            self.say(f"[dim]{name} is for you to build: minilora learn {self.lesson.number}, in a terminal.[/]")
            return
        file, entry = open_desk(self.lesson, self.folder), self.record.exercise(self.lesson.slug, name)
        self.say(f"Write [bold]{name}[/] in [bold]{file}[/]; save it, then press Enter.")
        while True:
            key = self.ask("Enter checks · h hint · s skip · r reveal · q leave").lower()
            if key == "h":
                self.hint(name, entry)
            elif key in ("s", "r"):
                if key == "r":
                    reveal(self.record, self.lesson, name, self.console)
                return
            elif key == "" and self.judge(name, file, entry):
                return

    def hint(self, name: str, entry: dict[str, Any]) -> None:
        """The next hint; after the third, all three again."""
        hints = self.lesson.hints(name)
        entry["hints"] = min(len(hints), entry["hints"] + 1)
        self.keep()
        self.put(prose(f"**Hint {entry['hints']} of {len(hints)}.** {hints[entry['hints'] - 1]}"))

    def judge(self, name: str, file: Path, entry: dict[str, Any]) -> bool:
        """Check the learner's answer in a process of its own; True when it passed."""
        with self.console.status("checking …") if self.console.is_terminal else contextlib.nullcontext():
            verdict = judge_file(self.lesson, name, file, self.limit)
        entry["tries"] += 1
        entry["passed"] = entry["passed"] or verdict.status == "passed"
        self.keep()
        if verdict.said:
            self.console.print(f"your code printed:\n{verdict.said.rstrip()}", style="dim", markup=False)
        if verdict.status == "passed":
            earned = [n for n, e in self.entry["exercises"].items() if e["passed"] or e["revealed"]]
            saved = write_solutions(self.lesson, self.folder, earned)
            self.say(f"[green]Passed.[/] A solution to compare with yours: {saved}")
            return True
        title = {"to do": "Still to do", "wrong": "Not yet", "timeout": "Stopped"}.get(verdict.status, "It does not run")
        self.console.print(f"[yellow]{title}.[/]", end=" ")
        self.console.print(verdict.message or f"Fill in {name} in {file}.", markup=False)
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
            self.say(f"Next: [bold]minilora learn {self.lesson.number + 1}[/], or [bold]minilora learn[/] for the course.")

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
        while self.asking and (key := self.ask(f"{what} · q leave").lower()):
            if key == "f" and self.stage.shown:
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


class Counted(io.TextIOBase):
    """Passes a cell's output on at once, a bar before each line, and counts the lines."""

    def __init__(self, stream: Any):
        self.stream, self.lines, self.fresh = stream, 0, True

    def write(self, text: str) -> int:
        """Pass it on."""
        for line in text.splitlines(keepends=True):
            self.stream.write(f"  │ {line}" if self.fresh else line)
            self.fresh = line.endswith("\n")
        self.lines += text.count("\n")
        return len(text)

    def flush(self) -> None:
        """Pass it on."""
        self.stream.flush()


def reveal(record: Record, lesson: Lesson, name: str, console: Any) -> None:
    """Show a solution, write it out, and keep that it was shown."""
    record.exercise(lesson.slug, name)["revealed"] = True
    record.save()
    earned = [n for n, e in record.lesson(lesson.slug)["exercises"].items() if e["passed"] or e["revealed"]]
    saved = write_solutions(lesson, record.folder, earned)
    console.print(code(saved.read_text(encoding="utf-8")))
    console.print(f"Saved as {saved}.")
