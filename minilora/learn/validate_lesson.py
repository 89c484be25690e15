"""Is this a good lesson? ``python -m minilora.learn.validate_lesson lessons/05_alpha_over_r.py`` runs it and says what is missing.

It runs in a fresh process within its budget; its sections stand in order; its prose holds no result that the run did not
compute; no figure is blank; each stub is to do, each solution passes, each wrong answer is rejected with a message that helps.
The tests of the course ask the same questions of the same functions.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cells import Cell, Lesson, parse_lesson
from .checking import judge_answer
from .course import load_checks, load_solutions
from .run import run_apart

SECTIONS = (
    "Predict",
    "Run",
    "Look",
    "Explain",
    "Break it",
    "Build",
    "What you can now defend",
    "Open question",
)
ONCE = ("Explain", "Break it", "What you can now defend", "Open question")
SLACK = 3  # times the budget, on a noisy machine
LINES = 320  # of at most 100 columns
RESULT = re.compile(r"\d+\.\d+|\d+ ?%")
FROM_A_PAPER = re.compile(r"arxiv|table|section|§|appendix|equation|figure|paper", re.IGNORECASE)


def check_anatomy(lesson: Lesson) -> Iterator[str]:
    """What is wrong with a lesson's sections, exercises and length, a sentence each."""
    headings = re.findall(
        r"(?m)^## (.+)$", "\n".join(cell.text for cell in lesson.cells if cell.kind == "markdown")
    )
    names = [heading.partition(":")[0].strip() for heading in headings]
    yield from (
        f"'## {name}' is none of the sections {', '.join(SECTIONS)}"
        for name in names
        if name not in SECTIONS
    )
    yield from (f"the section '## {name}' is missing" for name in SECTIONS if name not in names)
    yield from (
        f"the section '## {name}' comes {names.count(name)} times"
        for name in ONCE
        if names.count(name) > 1
    )
    firsts = [name for name in dict.fromkeys(names) if name in SECTIONS]
    if firsts != sorted(firsts, key=SECTIONS.index):
        yield f"the sections come in the order {', '.join(firsts)}; wanted {', '.join(SECTIONS)}"
    length = lesson.path.read_text(encoding="utf-8").count("\n")
    if length > LINES * 1.1:
        yield f"{length} lines; about {LINES} at most"
    if not lesson.predictions:
        yield "nothing is predicted"
    if not 1 <= len(lesson.exercises) <= 2:
        yield f"{len(lesson.exercises)} exercises; one or two are wanted"
    checked = [cell.checks for cell in lesson.cells if cell.checks]
    for name in lesson.exercises:
        if not lesson.hints(name):
            yield f"{name} has no hints"
        if name not in checked:
            yield f"no code cell is just check({name})"


def literal_results(text: str) -> list[str]:
    """Decimals and percentages in prose that no run computed: outside {{ }}, code, quotations, and sentences on a paper.

    >>> literal_results("It fell to 0.12. In table 2 of the paper it is 0.3. `x = 0.5` and {{ loss:.3f }}.")
    ['0.12']
    """
    text = re.sub(r"\{\{.*?\}\}|```.*?```|`[^`]*`|“[^”]*”|\"[^\"]*\"", " ", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^( {4}|\t).*$", " ", text)
    sentences = re.split(r"(?<=[.!?:])\s+|\n\s*\n", text)
    return [
        found
        for part in sentences
        if not FROM_A_PAPER.search(part)
        for found in RESULT.findall(part)
    ]


def check_prose(lesson: Lesson) -> Iterator[str]:
    """Literal results in prose, questions and hints, with the line of their cell."""
    for cell in lesson.cells:
        if cell.kind in ("markdown", "predict"):
            text = cell.question if cell.kind == "predict" else cell.text
            yield from (
                f"cell of line {cell.line}: {found} is typed, not computed"
                for found in literal_results(text)
            )


def check_figures(run: dict[str, Any], folder: Path) -> Iterator[str]:
    """A lesson without a figure, figures that are nearly one colour, and figures without a dark face."""
    figures = [figure for cell in run["cells"] for figure in cell["figures"]]
    if not figures:
        yield "no figure is shown"
    for figure in figures:
        share = ink_share(folder / figure["light"])
        if share < 0.01:
            yield f"{figure['light']} is blank: {share:.2%} of it is ink"
        if figure["dark"] is None:
            yield f"{figure['light']} has no dark face: draw it in a function with @in_house_style"


def ink_share(file: Path) -> float:
    """The share (0 to 1) of an image's points that differ from its corner."""
    from matplotlib.image import imread

    image = imread(file)
    return float((abs(image - image[0, 0]).max(axis=-1) > 0.02).mean())


def check_exercise(lesson: Lesson, cell: Cell) -> Iterator[str]:
    """The stub must be to do, the solution must pass, each wrong answer must be rejected with a message that helps."""
    try:
        checks, solutions = load_checks(lesson.path), load_solutions(lesson.path)
    except Exception as error:  # the author's files: not there yet, or with a slip in them
        yield f"{cell.name}: checks/{lesson.path.name} and solutions/{lesson.path.name} are wanted ({error})"
        return
    checker = getattr(checks, f"check_{cell.name}", None)
    solution, wrong = (
        getattr(solutions, cell.name, None),
        getattr(checks, "WRONG", {}).get(cell.name, {}),
    )
    if checker is None or solution is None:
        yield f"{cell.name} lacks a {'checker' if checker is None else 'solution'}"
        return
    namespace: dict[str, Any] = {}
    exec(cell.text, namespace)
    status, message = judge_answer(checker, namespace[cell.name])
    if status != "to do":
        yield f"{cell.name}: the stub is '{status}' ({message}), wanted 'to do'"
    status, message = judge_answer(checker, solution)
    if status != "passed":
        yield f"{cell.name}: the solution is '{status}': {message}"
    if not (solution.__doc__ or "").strip():
        yield f"{cell.name}: the solution has no docstring"
    if len(wrong) < 3:
        yield f"{cell.name}: {len(wrong)} wrong answers; at least 3 are wanted"
    for name, answer in wrong.items():
        status, message = judge_answer(checker, answer)
        if status != "wrong":
            yield f"{cell.name}: the wrong answer {name!r} is '{status}' ({message}), wanted 'wrong'"
        elif len(message) <= 30 or not re.search(r"\d", message):
            yield f"{cell.name}: the message to {name!r} helps nobody: {message!r}"


def check_run(lesson: Lesson, run: dict[str, Any], folder: Path) -> Iterator[str]:
    """What a whole run shows: the budget, the figures."""
    # on a busy machine the clock says nothing
    if (took := min(run["wall"], run["processor"])) > SLACK * lesson.seconds:
        yield f"it took {took:.1f} s with the imports; {SLACK} times the budget is {SLACK * lesson.seconds} s"
    yield from check_figures(run, folder)


def prove_lesson(lesson: Lesson, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """All that is wrong with a lesson, and its run; figures go to ``folder``."""
    problems = [*check_anatomy(lesson), *check_prose(lesson)]
    for cell in lesson.exercises.values():
        problems += check_exercise(lesson, cell)
    try:
        run = run_apart(lesson, folder, dark=True)
    except ValueError as error:
        return [*problems, str(error)], {}
    return [*problems, *check_run(lesson, run, folder)], run


def print_run(lesson: Lesson, run: dict[str, Any]) -> None:
    """The run as plain text: prose, output, figures, answers."""
    for cell, ran in zip(lesson.cells, run["cells"], strict=True):
        parts = [
            ran["prose"],
            ran["output"].rstrip(),
            *(f"[figure {f['light']}: {f['alt']}]" for f in ran["figures"]),
        ]
        print("\n".join(part for part in parts if part))
        if cell.kind == "predict":
            print(f"  answer: {run['predictions'][cell.name]}")


def main() -> int:
    """``python -m minilora.learn.validate_lesson LESSON… [--out FOLDER] [--quiet]``: 0 when nothing is wrong."""
    options = argparse.ArgumentParser(
        prog="minilora.learn.validate_lesson",
        description="run lessons and say what is wrong with them",
    )
    options.add_argument("lessons", type=Path, nargs="+")
    options.add_argument(
        "--out",
        type=Path,
        help="folder for the figures (default: one of the system's temporary folders)",
    )
    options.add_argument("--quiet", action="store_true", help="do not print the run itself")
    chosen, wrong = options.parse_args(), 0
    for path in chosen.lessons:
        try:
            lesson = parse_lesson(path)
        except (ValueError, SyntaxError, OSError) as error:
            print(f"{path} is no lesson yet: {error}")
            wrong += 1
            continue
        folder = chosen.out or Path(tempfile.mkdtemp(prefix=f"{lesson.slug}-"))
        problems, run = prove_lesson(lesson, folder)
        if run and not chosen.quiet:
            print_run(lesson, run)
        took = f"{run['seconds']:.1f} s, {run['wall']:.1f} s with the imports" if run else "no run"
        print(f"\n{lesson.title}: {took} (budget {lesson.seconds} s); figures in {folder}")
        print(
            "\n".join(f"  - {problem}" for problem in problems)
            if problems
            else "  nothing is wrong"
        )
        wrong += bool(problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
