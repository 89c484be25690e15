"""The course as a map: its parts as rows, its lessons in order, arrows from what to know first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from .cells import Lesson

PARTS = {  # the first number of each part
    0: "The adapter",
    9: "Four bits",
    14: "Other methods",
    16: "What is lost, and why it works",
    20: "Many adapters",
    24: "To the metal, and alone",
}
BOX, TALL, GAP, ROW, TOP = 92, 30, 12, 76, 26  # in units of the picture
STYLE = """
.map rect { fill: var(--field); stroke: var(--line) }
.map a:hover rect { stroke: var(--link) }
.map text { fill: var(--ink); font: 11px system-ui, sans-serif }
.map a text { fill: var(--link); text-anchor: middle }
.map .part { font-weight: 700 }
.map path { fill: none; stroke: var(--soft) }
.map .far { stroke: var(--line) }
""".strip()


def first_lessons(lesson: Lesson) -> list[int]:
    """The numbers in a lesson's "Know first".

    >>> from minilora.learn.course import find_lesson
    >>> first_lessons(find_lesson(14))
    [5, 8]
    """
    return [int(number) for number in re.findall(r"\d\d", lesson.first)]


def part_of(number: int) -> int:
    """The first number of the part that a lesson belongs to."""
    return max(first for first in PARTS if first <= number)


def draw_map(lessons: Sequence[Lesson]) -> str:
    """The map as SVG, each lesson a link to its page; it takes the page's colours."""
    parts = sorted({part_of(lesson.number) for lesson in lessons})
    corner: dict[int, tuple[int, int]] = {}
    for row, part in enumerate(parts):
        numbers = [each.number for each in lessons if part_of(each.number) == part]
        corner |= {n: ((BOX + GAP) * i, TOP + ROW * row) for i, n in enumerate(numbers)}
    width = max(x for x, _ in corner.values()) + BOX + 2
    words = [
        f'<text class="part" x="1" y="{TOP + ROW * row - 8}">{escape(PARTS[part])}</text>'
        for row, part in enumerate(parts)
    ]
    drawn = [
        way(corner[first], corner[lesson.number])
        for lesson in lessons
        for first in first_lessons(lesson)
        if first in corner
    ]
    drawn += words + [box(lesson, *corner[lesson.number]) for lesson in lessons]
    size = f'viewBox="0 0 {width} {ROW * len(parts)}" width="{width}"'
    title = "<title>The lessons in order; an arrow comes from what to know first</title>"
    style = f"<style>{STYLE}</style>"
    svg = f'<svg class="map" xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}{style}'
    return f'<div class="wide" tabindex="0">{svg}{"".join(drawn)}</svg></div>'


def box(lesson: Lesson, x: int, y: int) -> str:
    """One lesson."""
    words = lesson.slug[3:].replace("_", " ")
    rect = f'<rect x="{x + 1}" y="{y}" width="{BOX}" height="{TALL}" rx="5"/>'
    lines = [lesson.slug[:2], words]
    text = "".join(
        f'<text x="{x + 1 + BOX // 2}" y="{y + 12 + 13 * n}">{escape(line)}</text>'
        for n, line in enumerate(lines)
    )
    return f'<a href="{lesson.slug}.html"><title>{escape(lesson.title)}</title>{rect}{text}</a>'


def way(start: tuple[int, int], end: tuple[int, int]) -> str:
    """From a lesson to the next in its row, or in a curve to one farther on."""
    (x, y), (to_x, to_y) = start, end
    if y == to_y and to_x == x + BOX + GAP:
        at = y + TALL // 2
        return f'<path d="M{x + BOX + 1},{at} h{GAP - 1} m-4,-3 l4,3 l-4,3"/>'
    x, to_x = x + BOX // 2, to_x + BOX // 2 + 8
    if y == to_y:  # over others of the row
        return f'<path class="far" d="M{x},{y} C{x},{y - 18} {to_x},{y - 18} {to_x},{y}"/>'
    low = y + TALL
    curve = f"M{x},{low} C{x},{low + 24} {to_x},{to_y - 30} {to_x},{to_y}"
    return f'<path class="far" d="{curve}"/>'
