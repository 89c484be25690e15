"""Where the lessons lie, in the package or in the checkout beside it, and how to find one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .cells import Lesson, parse_lesson

PACKAGE = Path(__file__).parent.parent


def lessons_folder() -> Path:
    """The folder of the lessons: in the package after an install, beside it in a checkout.

    Raises ``ValueError`` when neither is there.
    """
    for folder in (PACKAGE / "lessons", PACKAGE.parent / "lessons"):
        if list(folder.glob("[0-9][0-9]_*.py")):
            return folder
    raise ValueError(f"there are no lessons at {PACKAGE / 'lessons'}: install minilora again")


def list_lessons(folder: Path | None = None) -> list[Lesson]:
    """All lessons of the course, in order.

    >>> list_lessons()[0].slug
    '00_start_here'
    """
    folder = folder or lessons_folder()
    return [parse_lesson(path) for path in sorted(folder.glob("[0-9][0-9]_*.py"))]


def list_repairs() -> list[Lesson]:
    """The short scripts that start broken, in order; their numbers are above the lessons'.

    >>> list_repairs()[0].slug
    '91_bias_trains'
    """
    return list_lessons(lessons_folder() / "repairs")


def find_lesson(number: str | int, folder: Path | None = None) -> Lesson:
    """The lesson or the repair of a number (5, "05"), a slug, or a file of your own.

    Raises ``ValueError``, which lists the lessons, when there is none.
    """
    name, lessons = str(number), list_lessons(folder)
    if name.endswith(".py"):
        return parse_lesson(name)
    for lesson in (*lessons, *(list_repairs() if folder is None else ())):
        same_number = name.isdigit() and int(name) == lesson.number
        if same_number or name in (lesson.slug, lesson.slug[3:]):
            return lesson
    slugs = ", ".join(lesson.slug for lesson in lessons)
    raise ValueError(f"there is no lesson {name!r}; there are {slugs}")


def find_lessons(names: Sequence[str] | None) -> list[Lesson]:
    """The lessons of numbers, names, files or ranges, each once; for no names, all of them.

    Raises as ``find_lesson``.

    >>> [lesson.slug for lesson in find_lessons(["1-2", "rank"])]
    ['01_one_matmul', '02_rank']
    """
    if not names:
        return list_lessons()
    lessons: dict[Path, Lesson] = {}
    for name in names:
        ends = re.fullmatch(r"(\d+)[-–](\d+)", name)
        if ends and int(ends[1]) > int(ends[2]):
            raise ValueError(f"a range goes up, such as 1-5, got {name!r}")
        for number in range(int(ends[1]), int(ends[2]) + 1) if ends else [name]:
            lesson = find_lesson(number)
            lessons[lesson.path] = lesson
    return list(lessons.values())


def find_exercise(name: str, folder: Path | None = None) -> Path | None:
    """The file of the lesson that checks an exercise, in the course and its repairs or ``folder``.

    No two of them have an exercise of the same name.
    """
    course = lessons_folder()
    for place in [folder] if folder else [course, course / "repairs"]:
        for path in sorted((place / "checks").glob("*.py")):
            if re.search(rf"(?m)^def check_{name}\(", path.read_text(encoding="utf-8")):
                return place / path.name
    return None


def load_module(path: Path) -> ModuleType:
    """Import a file by its path, under a name of its own. Raises whatever the file raises."""
    name = f"minilora_lessons_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_checks(lesson: Path) -> ModuleType:
    """The checkers of a lesson: ``check_<name>`` functions and ``WRONG``."""
    return load_module(lesson.parent / "checks" / lesson.name)


def load_solutions(lesson: Path) -> ModuleType:
    """The solutions of a lesson."""
    return load_module(lesson.parent / "solutions" / lesson.name)
