"""Is this a good lesson? This module runs it and reports each problem in a sentence.

    python -m minilora.learn.validate_lesson lessons/05_alpha_over_r.py

It runs in a fresh process within its budget; its sections stand in order; its prose holds no result
that the run did not compute; no figure is blank; each stub is to do (one that starts broken is
wrong), each solution passes, each wrong answer is rejected with a message that helps. The tests of
the course call these functions.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .answers import judge_answer
from .cells import Cell, Lesson, parse_lesson
from .course import load_checks, load_solutions
from .run import run_apart

CLOSING = ("What you can now defend", "Open question")
SECTIONS = ("Predict", "Run", "Look", "Explain", "Break it", "Build", *CLOSING)
ONCE = ("Explain", "Break it", *CLOSING)
SLACK = 3  # times the budget, on a noisy machine
LINES = 320  # of at most 100 columns
LISTED = 78  # columns of a listing in a terminal of 80
IMPORTS = {"torch": "import torch", "np": "import numpy as np", "math": "import math"}
RESULT = re.compile(r"\d+\.\d+|\d+ ?%")
FROM_A_PAPER = re.compile(r"arxiv|table|section|§|appendix|equation|figure|paper", re.IGNORECASE)


def check_anatomy(lesson: Lesson) -> Iterator[str]:
    """The problems of a lesson's sections, exercises and length, a sentence each."""
    prose = "\n".join(cell.text for cell in lesson.cells if cell.kind == "markdown")
    names = [heading.partition(":")[0].strip() for heading in re.findall(r"(?m)^## (.+)$", prose)]
    for name in names:
        if name not in SECTIONS:
            yield f"'## {name}' is none of the sections {', '.join(SECTIONS)}"
    yield from (f"the section '## {name}' is missing" for name in SECTIONS if name not in names)
    for name in ONCE:
        if (times := names.count(name)) > 1:
            yield f"the section '## {name}' comes {times} times"
    firsts = [name for name in dict.fromkeys(names) if name in SECTIONS]
    if firsts != sorted(firsts, key=SECTIONS.index):
        order = ", ".join(SECTIONS)
        yield f"the sections come in the order {', '.join(firsts)}; expected {order}"
    length = lesson.path.read_text(encoding="utf-8").count("\n")
    if length > LINES * 1.1:
        yield f"{length} lines; expected about {LINES} at most"
    if not lesson.predictions:
        yield "nothing is predicted"
    if not 1 <= len(lesson.exercises) <= 2:
        yield f"{len(lesson.exercises)} exercises; expected one or two"
    checked = [cell.checks for cell in lesson.cells if cell.checks]
    for name in lesson.exercises:
        if not lesson.hints(name):
            yield f"{name} has no hints"
        if name not in checked:
            yield f"no code cell is just check({name})"
    yield from missing_imports(lesson)


def missing_imports(lesson: Lesson) -> Iterator[str]:
    """Modules that a hint uses and no exercise imports: a learner's file has the exercises only."""
    exercises = "\n".join(cell.text for cell in lesson.exercises.values())
    for name in lesson.exercises:
        hints = " ".join(lesson.hints(name))
        for module, line in IMPORTS.items():
            if re.search(rf"\b{module}\.", hints) and line not in exercises:
                yield f"a hint of {name} uses {module}: its cell must begin with `{line}`"


def literal_results(text: str) -> list[str]:
    """Decimals and percentages in prose that no run computed.

    Those in {{ }}, code and quotations do not count, nor those of a sentence on a paper.

    >>> literal_results("It fell to 0.12. In table 2 of the paper it is 0.3.")
    ['0.12']
    >>> literal_results("`x = 0.5` and {{ loss:.3f }}.")
    []
    """
    text = re.sub(r"\{\{.*?\}\}|```.*?```|`[^`]*`|“[^”]*”|\"[^\"]*\"", " ", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^( {4}|\t).*$", " ", text)
    sentences = re.split(r"(?<=[.!?:])\s+|\n\s*\n", text)
    own = [sentence for sentence in sentences if not FROM_A_PAPER.search(sentence)]
    return [number for sentence in own for number in RESULT.findall(sentence)]


def wide_listings(text: str) -> list[str]:
    """Indented lines (equations, lists in columns) that a terminal of 80 columns would break.

    >>> wide_listings("Two ways:\\n\\n    loop   one by one\\n    swap   " + 80 * "-")[0][:14]
    '    swap   ---'
    """
    listed = re.findall(r"(?m)^ {4}\S.*$", text)
    return [line for line in listed if len(line) - 4 > LISTED and "{{" not in line]


def check_prose(lesson: Lesson) -> Iterator[str]:
    """Literal results and wide listings in prose and questions, with the line of their cell."""
    for cell in lesson.cells:
        if cell.kind in ("markdown", "predict"):
            text = cell.question if cell.kind == "predict" else cell.text
            for number in literal_results(text):
                yield f"cell of line {cell.line}: {number} is typed, not computed"
            for line in wide_listings(text):
                yield f"cell of line {cell.line}: wraps in a terminal of 80 columns: {line.strip()}"


def check_figures(run: dict[str, Any], folder: Path) -> Iterator[str]:
    """A lesson without a figure; figures that are nearly one colour or lack a dark face."""
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
    """The stub is to do, the solution passes, each wrong answer gets a message that helps."""
    try:
        checks, solutions = load_checks(lesson.path), load_solutions(lesson.path)
    except Exception as error:  # the author's files: not written yet, or with a slip in them
        file = lesson.path.name
        yield f"{cell.name}: expected checks/{file} and solutions/{file} ({error})"
        return
    checker = getattr(checks, f"check_{cell.name}", None)
    solution = getattr(solutions, cell.name, None)
    if checker is None or solution is None:
        yield f"{cell.name} lacks a {'checker' if checker is None else 'solution'}"
        return
    namespace: dict[str, Any] = {}
    exec(cell.text, namespace)
    status, message = judge_answer(checker, namespace[cell.name])
    given = "to do" if cell.is_stub else "wrong"
    if status != given:
        yield f"{cell.name}: the stub is '{status}' ({message}), expected '{given}'"
    status, message = judge_answer(checker, solution)
    if status != "passed":
        yield f"{cell.name}: the solution is '{status}': {message}"
    if not (solution.__doc__ or "").strip():
        yield f"{cell.name}: the solution has no docstring"
    wrong = getattr(checks, "WRONG", {}).get(cell.name, {})
    if len(wrong) < 3:
        yield f"{cell.name}: {len(wrong)} wrong answers; expected at least 3"
    for name, answer in wrong.items():
        status, message = judge_answer(checker, answer)
        verdict = f"{cell.name}: the wrong answer {name!r} is '{status}' ({message})"
        if status != "wrong":
            yield f"{verdict}, expected 'wrong'"
        elif len(message) <= 30 or not re.search(r"\d", message):
            yield f"{cell.name}: the message to {name!r} helps nobody: {message!r}"


def check_run(lesson: Lesson, run: dict[str, Any], folder: Path) -> Iterator[str]:
    """The problems of a whole run: its budget, its figures."""
    # on a busy machine the clock says nothing
    took, most = min(run["wall"], run["processor"]), SLACK * lesson.seconds
    if took > most:
        yield f"it took {took:.1f} s with the imports; {SLACK} times the budget is {most} s"
    yield from check_figures(run, folder)


def prove_lesson(lesson: Lesson, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """All problems of a lesson, and its run; figures go to ``folder``."""
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
        figures = [f"[figure {figure['light']}: {figure['alt']}]" for figure in ran["figures"]]
        parts = [ran["prose"], ran["output"].rstrip(), *figures]
        print("\n".join(part for part in parts if part))
        if cell.kind == "predict":
            print(f"  answer: {run['predictions'][cell.name]}")


def main() -> int:
    """``python -m minilora.learn.validate_lesson LESSON…``: 0 when no lesson has a problem."""
    options = argparse.ArgumentParser(
        prog="minilora.learn.validate_lesson", description="run lessons and report their problems"
    )
    options.add_argument("lessons", type=Path, nargs="+")
    options.add_argument("--out", type=Path, help="folder for the figures (default: a new one)")
    options.add_argument("--quiet", action="store_true", help="do not print the run itself")
    chosen = options.parse_args()
    good = [report(path, chosen.out, chosen.quiet) for path in chosen.lessons]
    return 0 if all(good) else 1


def report(path: Path, out: Path | None, quiet: bool) -> bool:
    """Run one lesson and print its problems; True when it has none."""
    try:
        lesson = parse_lesson(path)
    except (ValueError, SyntaxError, OSError) as error:
        print(f"{path} is not a lesson yet: {error}")
        return False
    folder = out or Path(tempfile.mkdtemp(prefix=f"{lesson.slug}-"))
    problems, run = prove_lesson(lesson, folder)
    if run and not quiet:
        print_run(lesson, run)
    took = f"{run['seconds']:.1f} s, {run['wall']:.1f} s with the imports" if run else "no run"
    print(f"\n{lesson.title}: {took} (budget {lesson.seconds} s); figures in {folder}")
    print("\n".join(f"  - {problem}" for problem in problems) or "  nothing is wrong")
    return not problems


if __name__ == "__main__":
    raise SystemExit(main())
