"""The lesson engine: one script in percent cells is run, walked, graded, made a page or notebook.

In reading order:

    cells.py            a lesson as cells: prose, code, predictions, exercises, hints
    course.py           where the lessons lie, with their checks and solutions
    figures.py          ``show``: a figure, wherever the lesson runs
    short.py            the short form, for tests
    run.py              a lesson from start to end, in a process of its own
    checking.py         what a checker is made of: random cases, a comparison, a sentence
    answers.py          the verdict on an answer; mistakes that are known are named
    judge.py            a learner's answer, in its own process, with a limit
    source_parts.py     a function of a file, and what else of the file it uses
    pieces.py           one file of pieces from earlier lessons
    peers.py            PEFT and transformers without their notes
    workspace.py        the learner's folder        record.py     progress in it
    terminal.py         the console                 exercise.py   an answer judged and recorded
    quiz.py             old questions between new lessons
    walk.py             a lesson, cell by cell      watch.py      each save checked
    submissions.py      what a class hands in       grade.py      who has built what
    notebook.py         a lesson as a notebook
    equations.py        equations as MathML         pages.py      the parts of a page
    house.py            the picture of the wings    course_map.py the course's own
    drawings.py         what LoRA is; which way of adapting to choose
    api_pages.py        the package as pages        search.py     the page that finds things
    questions.py        what people ask, answered by a run
    kept_runs.py        runs that need not be made again
    book.py             the course as a site
    validate_lesson.py  whether a lesson keeps its promises

Imports the library and ``plots``. A lesson imports the names below.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .answers import check
    from .checking import Wrong, cases, close, forbid
    from .figures import show
    from .short import full_or_short, is_short

__all__ = ["Wrong", "cases", "check", "close", "forbid", "full_or_short", "is_short", "show"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
