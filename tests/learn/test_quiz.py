"""The quiz: every answer is computed, old questions come back, and nothing is asked in a pipe."""

import ast
import io
import json

import pytest

from minilora.commands.cli import main
from minilora.learn import quiz
from minilora.learn.cells import read_choices, same_answer
from minilora.learn.course import list_lessons
from minilora.learn.record import Record

QUESTIONS = quiz.read_questions()


def finish(folder, *slugs):
    record = Record(folder)
    for slug in slugs:
        record.lesson(slug)["finished"] = True
    record.save()


def type_in(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.name for question in QUESTIONS])
def test_an_answer_is_computed_by_code_that_runs(question):
    names = ast.walk(ast.parse(question.cell.answer))
    assert any(isinstance(node, ast.Name) for node in names), "a literal"
    answer = question.answer()
    other = "z" if isinstance(answer, str) else str(1.5 * answer + 1)
    assert same_answer(str(answer), answer)
    assert not same_answer(other, answer)
    choices = read_choices(question.cell.question)
    assert not choices or answer in choices
    assert choices or isinstance(answer, int | float)
    assert question.lesson in {lesson.number for lesson in list_lessons()}


def test_there_are_twenty_from_twenty_lessons():
    assert len(QUESTIONS) == len({question.lesson for question in QUESTIONS}) == 20


def test_in_a_pipe_it_prints_the_questions_with_their_answers(tmp_path, capsys):
    assert main(["learn", "quiz", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("The answer:") == 20
    assert "What is the rank of B A?" in " ".join(printed.split())
    assert not (tmp_path / "progress.json").exists()


def test_answers_are_kept_and_wrong_ones_come_back_first(tmp_path, monkeypatch, capsys):
    finish(tmp_path, "02_rank", "08_where_and_rank")
    type_in(monkeypatch, "2", "7")
    quiz.quiz(tmp_path, asking=True)
    printed = capsys.readouterr().out
    assert "1 of 2 right" in printed
    assert "minilora learn 8" in printed
    progress = json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))
    kept = progress["quiz"]
    assert {name: entry["box"] for name, entry in kept.items()} == {"l02_rank": 1, "l08_budget": 0}
    assert progress["lessons"]["02_rank"]["finished"]


def test_a_letter_that_is_not_offered_is_asked_for_again_and_q_leaves(
    tmp_path, monkeypatch, capsys
):
    finish(tmp_path, "04_why_b_is_zero")
    type_in(monkeypatch, "z", "b)")
    quiz.quiz(tmp_path, asking=True)
    assert "a, b or c?" in capsys.readouterr().out
    assert Record(tmp_path).quiz["l04_first_step"]["box"] == 1
    type_in(monkeypatch, "q")
    quiz.quiz(tmp_path, asking=True)
    assert "right" not in capsys.readouterr().out.lower()


def test_three_come_before_a_new_lesson_and_none_before_one_that_was_begun(
    tmp_path, monkeypatch, capsys
):
    quiz.quiz_before(1, tmp_path, asking=True)
    assert capsys.readouterr().out == ""  # nothing lies behind yet
    finish(tmp_path, "00_start_here", "01_one_matmul", "02_rank", "04_why_b_is_zero")
    type_in(monkeypatch, "", "", "")
    quiz.quiz_before(5, tmp_path, asking=True)
    assert "0 of 3 right" in capsys.readouterr().out
    asked = set(Record(tmp_path).quiz)
    assert len(asked) == 3
    type_in(monkeypatch, "", "", "")
    quiz.quiz_before(5, tmp_path, asking=True)
    assert set(Record(tmp_path).quiz) > asked, "the one that was not asked yet comes first"
    capsys.readouterr()
    quiz.quiz_before(2, tmp_path, asking=True)
    quiz.quiz_before(5, tmp_path, asking=False)
    assert capsys.readouterr().out == ""


def test_before_a_lesson_come_only_those_that_are_due(tmp_path, monkeypatch, capsys):
    record, (first, second, third) = Record(tmp_path), QUESTIONS[:3]
    for question in (first, second):
        for _ in range(3):
            quiz.keep(question, record, good=True)  # in box 3: not before eight others
    names = [each.name for each in quiz.due_questions([first, second, third], record.quiz, 3)]
    assert names == [third.name]
    quiz.keep(third, record, good=False)  # the seventh; the first waits until the eleventh
    assert quiz.due_questions([first, second], record.quiz, 3) == []
    for slug in ("00_start_here", "01_one_matmul"):
        record.lesson(slug)["finished"] = True
    record.quiz = {each.name: {"asked": 1, "box": 4} for each in QUESTIONS if each.lesson < 2}
    record.save()
    type_in(monkeypatch)
    quiz.quiz_before(5, tmp_path, asking=True)
    assert capsys.readouterr().out == ""


def test_right_answers_wait_longer_each_time(tmp_path):
    record = Record(tmp_path)
    often = QUESTIONS[0]
    waits = []
    for _ in range(4):
        quiz.keep(often, record, good=True)
        asked, box = record.quiz[often.name].values()
        known = {question.name: {"asked": asked, "box": 0} for question in QUESTIONS[1:4]}
        known[often.name] = record.quiz[often.name]
        order = quiz.choose_questions(QUESTIONS[:4], known, 4)
        waits.append((box, order.index(often)))
    assert [box for box, _ in waits] == [1, 2, 3, 4]
    assert waits[-1][1] == 3


def test_a_broken_quiz_is_set_aside_with_a_message(tmp_path):
    (tmp_path / "progress.json").write_text('{"lessons": {}, "quiz": {"a": 3}}', encoding="utf-8")
    record = Record(tmp_path)
    assert record.quiz == {}
    assert "the question 'a' must have asked, box" in record.note


def test_the_quiz_takes_no_other_option(tmp_path, capsys):
    assert main(["learn", "quiz", "--reset", "--folder", str(tmp_path)]) == 2
    assert "none of --from" in capsys.readouterr().err
