"""The book: a site of plain pages from a real run, with prose beside its code, output and figures.

The pages need no script and no network. Every lesson runs in a fresh process first; nothing is
written unless all come to their end. Figures have a light and a dark face, and the browser chooses.
Beside the lessons: the core modules (``api_pages.py``) and the planner.
"""

from __future__ import annotations

import html
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..files import text_writer, write_atomically, write_together
from ..plots.planner_page import planner_page
from . import api_pages
from .cells import Cell, Lesson
from .pages import CSS, cards, details, frame, render_code, render_prose, row, turn
from .run import run_apart

MODULES = "Each module with its equation, its source and its code side by side."
PLANNER = "Bytes, parameters and cards, for your model and your settings."
BESIDE = (
    ("package.html", "The package, to be read", MODULES),
    ("api.html", "API", "Every public name, from its docstring."),
    ("planner.html", "What will this fine-tune cost?", PLANNER),
)


def write_book(
    folder: Path, lessons: Sequence[Lesson], say: Callable[[str], None] = print, solved: bool = True
) -> Path:
    """Run the lessons and write the site; returns its home page.

    ``say`` gets a line before each lesson; ``solved`` adds the solutions. Raises ``ValueError``
    when a lesson fails, before anything is written.
    """
    pages = {}
    with tempfile.TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        neighbours = [None, *lessons, None]
        for index, lesson in enumerate(lessons):
            say(f"lesson {lesson.slug} ({index + 1} of {len(lessons)}), about {lesson.seconds} s …")
            run = run_apart(lesson, drawn, dark=True)
            before, after = neighbours[index], neighbours[index + 2]
            pages[page_name(lesson)] = lesson_page(lesson, run, drawn, before, after, solved)
        for file in sorted(drawn.glob("*.png")):
            write_atomically(folder / "figures" / file.name, partial(shutil.copyfile, file))
    say("the package …")
    pages |= {f"module-{name}.html": api_pages.module_page(name) for name in api_pages.CORE}
    pages["package.html"], pages["api.html"] = api_pages.package_page(), api_pages.api_page()
    pages["planner.html"] = planner_page("index.html")
    pages["book.css"] = CSS.read_text(encoding="utf-8")
    pages["index.html"] = home_page(lessons)  # last, as it links to the others
    write_together(folder, {name: text_writer(text) for name, text in pages.items()})
    return folder / "index.html"


def page_name(lesson: Lesson) -> str:
    """A lesson's file in the site."""
    return f"{lesson.slug}.html"


def home_page(lessons: Sequence[Lesson]) -> str:
    """The map of the course, and the ways into the package."""
    course = [(page_name(lesson), lesson.title, summary(lesson)) for lesson in lessons]
    body = (
        "<h1>LoRA and QLoRA, from one matrix multiply on</h1>"
        "<p class=lead>Each lesson asks one question and answers it with one experiment. "
        "Guess first, then read the run. Every number on these pages was computed by the code "
        "beside it.</p><p>To run them yourself, with guesses that are kept and exercises that are "
        "checked: <code>minilora learn</code>.</p>"
        f"<h2>The course</h2>{cards(course)}<h2>Beside the course</h2>{cards(BESIDE)}"
    )
    return frame("minilora: LoRA and QLoRA, to be read", body, "index.html")


def summary(lesson: Lesson) -> str:
    """A lesson's header in one line."""
    minutes = f"{lesson.minutes} minutes to read"
    return f"Know first: {lesson.first} · {lesson.difficulty} · {minutes}"


def lesson_page(
    lesson: Lesson,
    run: dict[str, Any],
    figures: Path,
    before: Lesson | None,
    after: Lesson | None,
    solved: bool = True,
) -> str:
    """One lesson: rows of prose, each beside the code that follows, its output and its figures."""
    rows: list[tuple[str, str, bool]] = []
    left = right = ""
    section = False
    for cell, ran in zip(lesson.cells, run["cells"], strict=True):
        if cell.kind in ("markdown", "predict", "hints"):
            if right:
                rows.append((left, right, section))
                left = right = ""
                section = False
            section = section or cell.text.startswith("## ")
            left += prose_part(cell, ran, run)
        else:
            right += code_part(lesson, cell, ran, figures, solved)
    rows.append((left, right, section))
    body = "\n".join(row(*each) for each in rows)
    pages = [(page_name(each), each.title) if each else None for each in (before, after)]
    return frame(f"{lesson.title} · minilora", body + turn(*pages))


def prose_part(cell: Cell, ran: dict[str, Any], run: dict[str, Any]) -> str:
    """Prose, a prediction that unfolds to its answer, or three hints that unfold one by one."""
    if cell.kind == "hints":
        hints = enumerate(cell.hints, 1)
        return "".join(details(f"Hint {number}", render_prose(hint)) for number, hint in hints)
    text = render_prose(ran["prose"])
    if cell.kind == "predict":
        answer = run["predictions"].get(cell.name)
        shown = f"{answer:.4g}" if isinstance(answer, float) else str(answer)
        fold = details("What the run says", f"<p>{html.escape(shown)}</p>")
        return f'<div class="predict"><b>Your guess first</b>{text}{fold}</div>'
    return text


def code_part(
    lesson: Lesson, cell: Cell, ran: dict[str, Any], figures: Path, solved: bool = True
) -> str:
    """Code, its output, its figures.

    In place of an exercise's check stands the solution, folded, or how to have an answer checked.
    """
    if cell.checks and not solved:
        return f"<p>Write it, and have it checked: <code>minilora learn {lesson.number}</code></p>"
    if cell.checks:
        solution = lesson.path.parent / "solutions" / lesson.path.name
        title = f"A solution of {cell.checks}, when you have one of your own"
        return details(title, render_code(solution.read_text(encoding="utf-8")))
    output = html.escape(ran["output"].rstrip())
    parts = [render_code(cell.text)]
    parts += [f'<pre class="output" tabindex="0">{output}</pre>'] if output.strip() else []
    return "".join([*parts, *(figure_part(figure, figures) for figure in ran["figures"])])


def figure_part(figure: dict[str, Any], figures: Path) -> str:
    """A figure with both its faces and its text for who cannot see it."""
    light, alt = f"figures/{figure['light']}", html.escape(figure["alt"], quote=True)
    width, height = png_size(figures / figure["light"])
    size = f'width="{width // 2}" height="{height // 2}"'
    picture = f'<img src="{light}" alt="{alt}" {size}>'
    if figure["dark"]:
        media = 'media="(prefers-color-scheme: dark)"'
        picture = f'<source srcset="figures/{figure["dark"]}" {media}>{picture}'
    return f'<figure><a href="{light}"><picture>{picture}</picture></a></figure>'


def png_size(file: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    head = file.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
