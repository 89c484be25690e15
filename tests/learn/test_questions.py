"""docs/questions.md: its lessons, lines and numbers exist and agree with a new computation."""

import re

import pytest

from minilora.learn import questions
from minilora.learn.cells import split_cells
from minilora.learn.course import find_lesson, lessons_folder, list_lessons

ROOT = lessons_folder().parent
DOCUMENT = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
# a model's or a format's name, a lesson, a width in bits, what a paper says
NAMES = r"the paper's [\d.]+|\b[A-Za-z]+-?\d+(?:-\d+B)?|\d+B\b|[Ll]esson \d\d"
NAMES += r"|\d+( or \d+)?[ -]bits?\b"
COMMON = {"what", "with", "that", "than", "then", "this", "from", "need", "take", "where"}


def shown_text(answer):
    """What the lesson or the document says that shows the answer, without line breaks."""
    if isinstance(answer.shown, int):
        text = " ".join(cell.text for cell in find_lesson(answer.shown).cells)
    else:
        text = questions.file_of(answer.shown).read_text(encoding="utf-8")
    return " ".join(text.split())


@pytest.fixture(scope="module")
def answers():
    return questions.read_answers()


def test_the_document_is_what_the_cells_compute(answers):
    """Word for word; a number may differ in its last printed digit.

    What a training came to may differ by 15%, as it is another on another processor; a rounding
    error (1e-07) has only its size in common.
    """
    new, old = questions.document(answers), DOCUMENT
    assert NUMBER.sub("#", new) == NUMBER.sub("#", old)
    trains = {answer.question for answer in answers if ".train(" in answer.code}
    heading = ""
    for line, kept in zip(new.splitlines(), old.splitlines(), strict=True):
        heading = line.removeprefix("## ") if line.startswith("## ") else heading
        for mine, written in zip(NUMBER.findall(line), NUMBER.findall(kept), strict=True):
            a, b = (float(text.replace(",", "")) for text in (mine, written))
            if re.search("e-0[5-9]", written):
                assert b / 20 < a < 20 * b, line
                continue
            last_digit = 10.0 ** -len(written.partition(".")[2])
            assert abs(a - b) <= max(1.01 * last_digit, 0.15 * b * (heading in trains)), line


def sources():
    """Each question's prose as it stands in the file, with its code."""
    code = first = ""
    for cell in split_cells((lessons_folder() / questions.FILE).read_text("utf-8")):
        if cell.kind == "code":
            code, first = cell.text, first or cell.text
        elif cell.text.startswith("## "):
            yield cell.text.partition("\n")[0].removeprefix("## "), cell.text, first + code


def test_there_are_forty_and_more_each_with_three_sentences_a_lesson_a_line_and_a_number(answers):
    assert len(answers) == len({answer.page for answer in answers}) >= 40
    for answer, (question, prose, _) in zip(answers, sources(), strict=True):
        assert question == answer.question
        ends = re.findall(r"[.?](?=\s|$)", answer.text)
        assert len(ends) == 3, f"{answer.question}: {len(ends)} sentences"
        assert "{{" in prose, f"{answer.question}: no number that a run computed"
        assert questions.line_number(answer) >= 1


def test_no_number_is_typed_that_a_run_should_give():
    """What is not filled in stands in the code as a setting, or is a thread's, or a name's."""
    for question, prose, code in sources():
        body = prose.partition("\n")[2].rpartition("\n\n")[0].replace("\n", " ")
        filled = " ".join(re.findall(r"\{\{.*?\}\}", body))
        body = re.sub(r"\{\{.*?\}\}|`[^`]*`", "", body)
        sentences = [each for each in re.split(r"(?<=[.?:;])\s", body) if "#" not in each]
        typed = re.sub(NAMES, "", " ".join(sentences))
        plain = (code + filled).replace("_", "").replace(",", " ")
        settings = {float(number) for number in NUMBER.findall(plain)}
        for number in NUMBER.findall(typed):
            assert float(number.replace(",", "")) in settings, f"{question}: {number}"


def test_what_is_linked_shows_it(answers):
    """The words stand in the lesson or the document, and one of them in the question or answer."""
    for answer in answers:
        words = re.sub(r"[`*]", "", answer.words)
        shown = shown_text(answer)
        assert answer.words in shown, f"{answer.question}: {answer.shown} lacks {answer.words!r}"
        asked = (answer.question + " " + answer.text).lower()
        keys = [word[:5] for word in re.findall(r"\w{4,}", words.lower())]
        keys = [key for key in keys if key not in COMMON]
        assert any(key in asked for key in keys), f"{answer.question}: {answer.words!r}"
        text = questions.file_of(answer.file).read_text(encoding="utf-8")
        places = sum(answer.line in line for line in text.splitlines())
        assert places == 1, f"{answer.question}: {answer.line!r} stands in {places} lines"


def test_a_line_that_is_not_there_is_named(answers):
    end = 'Lesson 05, "no such words" · README.md · `no such line`'
    wrong = questions.read_answer(f"## Why?\n\nSo.\n\n{end}", "", "q")
    assert wrong.words not in shown_text(wrong)
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
        if isinstance(answer.shown, int):
            assert f'href="{find_lesson(answer.shown).slug}.html"' in pages[answer.page]
        else:
            assert f"<code>{answer.shown}</code>" in pages[answer.page]
    alone = questions.question_pages(answers, [])[answers[0].page]
    assert f"lesson {answers[0].shown:02}" in alone  # a book of no lesson has no link to one
