"""The terminal walk: one cell at a time, a prediction before the run, exercises checked on Enter.

Without a terminal (a pipe, a log) it runs straight through and asks nothing. Every step is recorded
before the next, so a lesson continues where it was left; the code cells before that place run
again, silently.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from pathlib import Path
from typing import Any

from .cells import Cell, Lesson, is_guess, read_choices, same_answer
from .exercise import judge_and_record, reveal
from .figures import Stage, on_stage
from .judge import LIMIT
from .record import Record
from .run import Session
from .terminal import BAR, Counted, code, folded, make_console, open_file, prose
from .workspace import open_answer_file, working_in


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
        """Walk from the learner's place to the end; True when the lesson was finished."""
        if self.record.note:
            self.say(f"[yellow]{self.record.note}[/]")
        if self.entry["finished"] or self.reached >= len(self.lesson.cells):
            self.entry.update(cell=0, finished=False)
            self.reached = 0
        try:
            with on_stage(self.stage), working_in(self.folder):
                self.catch_up()
                for index in range(self.reached, len(self.lesson.cells)):
                    self.step(index)
                    self.reached = index + 1
                    self.entry["seen"] = sorted({*self.entry["seen"], index})
                    self.keep()
        except (Left, EOFError, KeyboardInterrupt):
            self.keep()
            command = f"minilora learn {self.lesson.number}"
            self.console.print(f"\nLeft. Continue with: [bold]{command}[/]")
            return False
        self.entry["finished"] = True
        self.keep()
        self.farewell()
        return True

    def keep(self) -> None:
        """Record the place and the seconds."""
        if not self.asking:
            return  # a run through a pipe teaches nobody
        now = time.monotonic()
        seconds = round(self.entry["seconds"] + now - self.since, 1)
        self.entry.update(cell=self.reached, seconds=seconds)
        self.since = now
        self.record.save()

    def catch_up(self) -> None:
        """Run the code before the learner's place silently; show the text they were reading."""
        cells = self.lesson.cells
        if self.reached:
            place = f"continues at cell {self.reached + 1} of {len(cells)}"
            self.say(f"[dim]{self.lesson.title}: {place}. The code before it runs again.[/]")
        with contextlib.redirect_stdout(io.StringIO()):
            for cell in cells[: self.reached]:
                if cell.kind in ("code", "exercise") and not cell.checks:
                    self.session.run(cell)
        code_cells = [n for n in range(self.reached) if cells[n].kind == "code"]
        reading = cells[max(code_cells, default=-1) + 1 : self.reached]
        for cell in reading:
            if cell.kind == "markdown":
                self.put(prose(self.session.prose(cell)))
            elif cell.kind == "exercise":
                self.put(code(cell.text))
            elif cell.kind == "predict" and cell.name in self.entry["predictions"]:
                self.waiting.append(cell)
                typed = self.entry["predictions"][cell.name]["said"] or "nothing"
                question = self.session.prose(cell)
                self.put(prose(f"**Your prediction.** {question}\n\nYou said: {typed}"))

    def step(self, index: int) -> None:
        """Show one cell, and ask, run or check, by its kind."""
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
        """Show a code cell, run it on Enter, show its figures, compare the predictions."""
        for text, drawing in cell.segments:
            self.put(folded(text) if drawing else code(text))
        self.pause("Enter runs it")
        drawn, start = len(self.stage.shown), time.monotonic()
        width = self.console.width - len(BAR) if self.asking else 10**6
        with contextlib.redirect_stdout(Counted(sys.stdout, width)) as output:
            with output.alive() if self.asking else contextlib.nullcontext():
                self.session.run(cell)
            output.close_line()
        if output.lines:
            self.say("")
        self.lines += output.lines
        took = time.monotonic() - start
        figures = self.stage.shown[drawn:]
        for figure in figures:
            keys = "  (f and Enter opens it)" if self.asking else ""
            self.say(f"[green]figure[/] {figure.light}{keys}\n[dim]{figure.alt}[/]")
        if took > 2:
            self.say(f"[dim]took {took:.0f} s[/]")
        for asked in self.waiting:
            self.compare(asked, named=len(self.waiting) > 1)
        if self.waiting or took > 2 or figures:
            self.say("")
        self.waiting = []

    def predict(self, cell: Cell) -> None:
        """Ask for a prediction and keep it."""
        self.put(prose("**Your prediction.** " + self.session.prose(cell)))
        self.waiting.append(cell)
        if not self.asking:
            return
        guess = self.ask("Your guess (Enter: none)")
        letters = list(read_choices(cell.question))
        while guess and letters and not re.match(rf"[{''.join(letters)}](\W|$)", guess.lower()):
            self.say(f"{', '.join(letters[:-1])} or {letters[-1]}?")
            guess = self.ask("Your guess (Enter: none)")
        self.entry["predictions"][cell.name] = {"said": guess}
        self.keep()

    def compare(self, cell: Cell, named: bool = False) -> None:
        """Say whether a prediction was right; ``named``: which one, where a cell settles two."""
        from rich.markup import escape

        answer = self.session.answer(cell)
        number = f"{answer:.4g}" if isinstance(answer, float) else str(answer)
        shown = read_choices(self.session.prose(cell)).get(number, number)
        topic = cell.name.replace("_", " ")
        prediction = self.entry["predictions"].get(cell.name, {})
        guess = str(prediction.get("said", ""))
        if not self.asking or not is_guess(guess, answer):
            which = f" {topic}" if named else ""
            said = f" ({escape(guess)} is no number)" if guess and self.asking else ""
            self.say(f"[cyan]The answer to the prediction{which}:[/] {escape(shown)}{said}")
            return
        right = same_answer(guess, answer)
        prediction.update(answer=answer, right=right)
        verdict = "[green]You were right[/]" if right else "[yellow]Not as predicted[/]"
        which = f", {topic}" if named else ""
        self.say(f"{verdict}{which}: you said {escape(guess)}, it is {escape(shown)}.")

    def exercise(self, name: str) -> None:
        """Check the learner's file until it passes, is skipped, or its solution is shown."""
        if not self.asking:
            command = f"minilora learn {self.lesson.number}"
            self.say(f"[dim]{name} is for you to build: {command}, in a terminal.[/]")
            return
        file = open_answer_file(self.lesson, self.folder)
        entry = self.record.exercise(self.lesson.slug, name)
        verb = "Write" if self.lesson.exercises[name].is_stub else "Repair"
        self.say(f"{verb} [bold]{name}[/] in [bold]{file}[/]; save it, then press Enter.")
        while True:
            key = self.ask("Enter checks · h hint · s skip · r reveal · q leave").lower()
            if key == "h":
                self.hint(name, entry)
            elif key in ("s", "r"):
                if key == "r":
                    reveal(self.record, self.lesson, name, self.console)
                return
            elif key == "":
                if self.judge(name, file):
                    return
            else:
                self.say(f"Your code goes into {file}; save it there and press Enter here.")

    def hint(self, name: str, entry: dict[str, Any]) -> None:
        """The next hint; after the last, that one again."""
        hints = self.lesson.hints(name)
        entry["hints"] = min(len(hints), entry["hints"] + 1)
        self.keep()
        self.put(prose(f"**Hint {entry['hints']} of {len(hints)}.** {hints[entry['hints'] - 1]}"))

    def judge(self, name: str, file: Path) -> bool:
        """Check the learner's answer in a process of its own; True when it passed."""
        self.keep()
        return judge_and_record(self.record, self.lesson, name, file, self.console, self.limit)

    def farewell(self) -> None:
        """The lesson's score, and the next lesson."""
        if not self.asking:
            return
        number = self.lesson.number
        scored = [p["right"] for p in self.entry["predictions"].values() if "right" in p]
        right = sum(bool(one) for one in scored)
        guessed = f"Predictions right: {right} of {len(scored)}. " if scored else ""
        passed = sum(bool(entry["passed"]) for entry in self.entry["exercises"].values())
        built = f"Exercises passed: {passed} of {len(self.lesson.exercises)}."
        self.say(f"[bold green]Lesson {number} is done.[/] {guessed}{built}")
        files = self.lesson.path.parent.glob("[0-9][0-9]_*.py")
        after = min((n for path in files if (n := int(path.name[:2])) > number), default=0)
        following = f"[bold]minilora learn {after}[/], or " if after else ""
        self.say(f"Next: {following}[bold]minilora learn[/] for the course.")

    def put(self, drawn: Any) -> None:
        """Print a block, after a pause when it would push unread lines off the screen."""
        height = len(self.console.render_lines(drawn, self.console.options, pad=False)) + 1
        if self.asking and self.lines > 4 and self.lines + height > self.console.size.height - 1:
            self.pause("Enter continues")
        self.console.print(drawn)
        self.console.print()
        self.lines += height

    def say(self, text: str) -> None:
        """Print a line or two of ours."""
        self.console.print(text)
        self.lines += 1 + text.count("\n")

    def pause(self, keys: str) -> None:
        """Wait for Enter; f opens the last figure."""
        figure = " · f figure" if self.stage.shown else ""
        while self.asking and (key := self.ask(f"{keys}{figure} · q leave").lower()):
            if key != "f" or not self.stage.shown:
                self.say("Here Enter continues and q leaves, to come back later.")
                self.say("Hints are for the exercises (h).")
                continue
            path = self.stage.shown[-1].light
            if not open_file(path):
                self.say(f"No viewer is available; the figure is {path.resolve()}")

    def ask(self, question: str) -> str:
        """A line from the learner; ``Left`` on q."""
        self.console.print(f"[dim]{question}[/] [bold]>[/] ", end="")
        line = input().strip()
        self.lines = 1
        if line.lower() in ("q", "quit"):
            raise Left
        return line
