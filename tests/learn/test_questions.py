"""docs/questions.md: its lessons, lines and numbers exist and agree with a new computation."""

import re

import pytest

from minilora.learn import questions
from minilora.learn.course import find_lesson, lessons_folder, list_lessons

ROOT = lessons_folder().parent
DOCUMENT = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def answers():
    return questions.read_answers()


def test_the_document_is_what_the_cells_compute(answers):
    """Word for word; numbers up to what another processor's rounding may change."""
    new, old = questions.document(answers), DOCUMENT
    assert NUMBER.sub("#", new) == NUMBER.sub("#", old)
    for line, kept in zip(new.splitlines(), old.splitlines(), strict=True):
        for mine, written in zip(NUMBER.findall(line), NUMBER.findall(kept), strict=True):
            a, b = (float(text.replace(",", "")) for text in (mine, written))
            if "e-" not in mine:  # the rounding of a sum, which is another on another processor
                last_digit = 10.0 ** -len(written.partition(".")[2])
                assert a == pytest.approx(b, rel=0.15, abs=1.01 * last_digit), line


def test_there_are_forty_and_more_each_with_three_sentences_a_lesson_a_line_and_a_number(answers):
    assert len(answers) == len({answer.page for answer in answers}) >= 40
    sources = re.split(r"(?m)^# ## ", (lessons_folder() / questions.FILE).read_text("utf-8"))[1:]
    for answer, source in zip(answers, sources, strict=True):
        ends = re.findall(r"[.?](?=\s|$)", answer.text)
        assert len(ends) == 3, f"{answer.question}: {len(ends)} sentences"
        assert "{{" in source, f"{answer.question}: no number that a run computed"
        assert find_lesson(answer.lesson).number == answer.lesson
        assert questions.line_number(answer) >= 1


def test_a_line_that_is_not_there_is_named(answers):
    wrong = questions.read_answer(
        "## Why?\n\nSo.\n\nLesson 05 · README.md · `no such line`", "", "q"
    )
    with pytest.raises(ValueError, match="names a line that README.md lacks: no such line"):
        questions.line_number(wrong)
    with pytest.raises(ValueError, match="must end in 'Lesson NN"):
        questions.read_answer("## Why?\n\nSo.", "", "q")


def test_each_has_a_page_that_links_to_its_lesson_and_its_neighbours(answers):
    lessons = list_lessons()
    pages = questions.question_pages(answers, lessons)
    assert len(pages) == len(answers) + 1
    home = pages["questions.html"]
    for answer in answers:
        assert f'href="{answer.page}"' in home
        assert f'href="{find_lesson(answer.lesson).slug}.html"' in pages[answer.page]
    alone = questions.question_pages(answers, [])[answers[0].page]
    assert f"lesson {answers[0].lesson:02}" in alone  # a book of no lesson has no link to one
