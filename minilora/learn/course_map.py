"""The course as a map: its parts as rows, its lessons in order, with what to know first.

An arrow leads from a lesson to its neighbour; what lies farther back is named in the box.
"""

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
BOX, TALL, GAP, ROW, TOP = 100, 44, 14, 86, 26  # in units of the picture
STYLE = """
.map rect { fill: var(--field); stroke: var(--line) }
.map a:hover rect { stroke: var(--link) }
.map text { fill: var(--ink); font: 11px system-ui, sans-serif }
.map a text { fill: var(--link); text-anchor: middle }
.map .part { font-weight: 700 }
.map path { fill: none; stroke: var(--soft) }
.map a .first { fill: var(--soft); font-size: 10px }
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
    neighbours = [
        (corner[lesson.number - 1], corner[lesson.number])
        for lesson in lessons
        if lesson.number - 1 in first_lessons(lesson) and lesson.number - 1 in corner
    ]
    drawn = [arrow(*pair) for pair in neighbours if pair[0][1] == pair[1][1]]
    drawn += words + [box(lesson, *corner[lesson.number]) for lesson in lessons]
    size = f'viewBox="0 0 {width} {ROW * len(parts)}" width="{width}"'
    title = "<title>The lessons in order, with what to know first</title>"
    style = f"<style>{STYLE}</style>"
    svg = f'<svg class="map" xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}{style}'
    return f'<div class="wide" tabindex="0">{svg}{"".join(drawn)}</svg></div>'


def box(lesson: Lesson, x: int, y: int) -> str:
    """One lesson: its number, its name, and what to know first where that is not its neighbour."""
    words = lesson.slug[3:].replace("_", " ")
    rect = f'<rect x="{x + 1}" y="{y}" width="{BOX}" height="{TALL}" rx="5"/>'
    first = first_lessons(lesson)
    beside = first == [lesson.number - 1] and part_of(first[0]) == part_of(lesson.number)
    after = "" if beside or not first else "after " + ", ".join(f"{n:02}" for n in first)
    lines = [(lesson.slug[:2], ""), (words, ""), *([(after, "first")] if after else [])]
    text = "".join(
        f'<text class="{kind}" x="{x + 1 + BOX // 2}" y="{y + 13 + 13 * n}">{escape(line)}</text>'
        for n, (line, kind) in enumerate(lines)
    )
    return f'<a href="{lesson.slug}.html"><title>{escape(lesson.title)}</title>{rect}{text}</a>'


def arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """From a lesson to the next in its row."""
    at = start[1] + TALL // 2
    return f'<path d="M{start[0] + BOX + 1},{at} H{end[0]} m-4,-3 l4,3 l-4,3"/>'
