"""The course cannot rot: lessons run within their budgets, solutions pass, wrong answers do not."""

import os
import re
import sys

import pytest

from minilora.learn import validate_lesson
from minilora.learn.answers import judge_exercise
from minilora.learn.course import lessons_folder, list_lessons, list_repairs, load_checks
from minilora.learn.run import Session, run_apart

LESSONS, REPAIRS = list_lessons(), list_repairs()
EXERCISES = [
    (lesson, cell) for lesson in (*LESSONS, *REPAIRS) for cell in lesson.exercises.values()
]
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=[lesson.slug for lesson in LESSONS])


@pytest.mark.slow
@each_lesson
def test_a_lesson_runs_in_a_fresh_process_within_its_budget_and_draws(
    lesson, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINILORA_SHORT", os.environ.get("MINILORA_SHORT", "1"))
    run = run_apart(lesson, tmp_path, dark=True, limit=400)
    assert [*validate_lesson.check_run(lesson, run, tmp_path)] == []


@each_lesson
def test_a_lesson_has_its_sections_and_types_no_result(lesson):
    assert [*validate_lesson.check_anatomy(lesson), *validate_lesson.check_prose(lesson)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("lesson", "cell"), EXERCISES, ids=[cell.name for _, cell in EXERCISES])
def test_the_stub_is_to_do_the_solution_passes_and_wrong_answers_are_told_why(lesson, cell):
    assert [*validate_lesson.check_exercise(lesson, cell)] == []


@pytest.mark.parametrize(
    ("number", "name", "answer", "sentence"),
    [
        (7, "train_steps", "clears too late", "W is what it was before the training"),
        (7, "train_steps", "loss after", "each loss is the one after the step's update"),
        (7, "train_steps", "clears after", "an old gradient in .grad"),
        (16, "mixed_loss", "mean of row means", "A short row's token weighs more than a long"),
        (16, "mixed_loss", "means of all rows", "A short row's token, and a short window's"),
        (16, "mixed_loss", "wrong way round", 'a known mistake, "wrong way round": KL(q ‖ p)'),
        pytest.param(
            *(25, "fine_tune", "no alpha", "lora_alpha in adapter_config.json is 2; expected 4"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: str(value).replace(" ", "-")[:24],
)
def test_a_wrong_answer_that_a_learner_gave_is_told_what_it_does(number, name, answer, sentence):
    """Answers of the walks (docs/walks/learner.md) whose message had been a number only."""
    (lesson,) = (one for one in LESSONS if one.number == number)
    wrong = load_checks(lesson.path).WRONG[name][answer]
    status, message = judge_exercise(lesson.path, name, wrong)
    assert status == "wrong"
    assert sentence in message


def test_names_of_exercises_are_unique_and_numbers_run_on():
    names = [cell.name for _, cell in EXERCISES]
    assert len(set(names)) == len(names)
    numbers = [lesson.number for lesson in (*LESSONS, *REPAIRS)]
    assert numbers == sorted(set(numbers))


def test_the_map_in_the_readme_is_the_course():
    readme = (lessons_folder() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"(?m)^\| \[(\d\d)\]\((\S+)\.py\) \| (.+?) \| ([●○]{3}) \| (\d+) \| (\d+) s \|$", readme
    )
    assert rows == [
        (one.slug[:2], one.slug, one.question, one.difficulty, str(one.minutes), str(one.seconds))
        for one in LESSONS
    ]


@pytest.mark.parametrize("repair", REPAIRS, ids=[repair.slug for repair in REPAIRS])
def test_a_repair_starts_broken_shows_the_damage_and_says_what_to_do(repair, capsys):
    session = Session(repair)
    for cell in repair.cells:
        if cell.kind in ("code", "exercise") and not cell.checks:
            session.run(cell)
    assert capsys.readouterr().out
    (name,) = repair.exercises
    assert "NotImplementedError" not in repair.exercises[name].text
    assert repair.hints(name)
    assert [cell.checks for cell in repair.cells if cell.checks] == [name]
    assert [*validate_lesson.check_prose(repair)] == []


def test_the_repairs_are_listed_in_the_readme():
    readme = (lessons_folder() / "README.md").read_text(encoding="utf-8")
    row = r"(?m)^\| \[(\d\d)\]\(repairs/(\S+)\.py\) \| (.+?) \| ([●○]{3}) \| (\d+) \|$"
    assert re.findall(row, readme) == [
        (
            one.slug[:2],
            one.slug,
            one.question.removeprefix("Repair: "),
            one.difficulty,
            str(one.minutes),
        )
        for one in REPAIRS
    ]


def test_the_plan_of_six_weeks_has_every_lesson_once_and_its_minutes():
    readme = (lessons_folder() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"(?m)^\| \d \| (\d\d) to (\d\d)[^|]*\|[^|]*\| (\d+) min \| (\d+) min \| (\d+) s \|$",
        readme,
    )
    numbers = [n for first, last, *_ in rows for n in range(int(first), int(last) + 1)]
    assert numbers == [int(lesson.number) for lesson in LESSONS]
    for first, last, *planned in rows:
        lessons = [one for one in LESSONS if int(first) <= int(one.number) <= int(last)]
        prose = "\n".join(c.text for one in lessons for c in one.cells if c.kind == "markdown")
        build = re.findall(r"Importance (?:[^\n]|\n(?!\n))*?· (\d+)\s+minutes?", prose)
        sums = sum(one.minutes for one in lessons), sum(map(int, build))
        assert [int(each) for each in planned] == [*sums, sum(one.seconds for one in lessons)]


BROKEN = """# %% [markdown]
# # 99 · Is this a lesson?
#
# Know first: nothing · Difficulty ●○○ · 1 minute to read · 5 seconds to run
#
# ## Run
# The loss fell by 12.5%, and `0.5` is code.
# ## Predict
# %%
x = 1
"""


def test_a_bad_lesson_is_told_what_is_wrong(tmp_path):
    (tmp_path / "99_bad.py").write_text(BROKEN, encoding="utf-8")
    lesson = validate_lesson.parse_lesson(tmp_path / "99_bad.py")
    problems = [*validate_lesson.check_anatomy(lesson), *validate_lesson.check_prose(lesson)]
    told = "\n".join(problems)
    assert "'## Look' is missing" in told
    assert "come in the order Run, Predict" in told
    assert "nothing is predicted" in told
    assert "0 exercises" in told
    assert "12.5" in told
    assert "0.5 is typed" not in told.replace("12.5", "")
    assert list(validate_lesson.check_figures({"cells": []}, tmp_path)) == ["no figure is shown"]


CARELESS = """# %% [markdown]
# # 98 · Is twice two four?
#
# Know first: nothing · Difficulty ●○○ · 1 minute to read · 60 seconds to run

# %%
print("twice two is", 2 * 2)

# %% [predict] four
# What is twice two?
# answer: 2 * 2

# %%
four = 2 * 2


# %% [exercise] double
def double(x):
    return x + x


# %% [hints] double
# 1. where
# 2. how
# 3. nearly

# %% [exercise] forgotten
def forgotten(x):
    raise NotImplementedError("TODO")


# %% [hints] forgotten
# 1. where
# 2. how
# 3. `np.zeros(3)`
"""
LENIENT = """from minilora.learn import Wrong


def check_double(answer):
    if answer(2) == 2:
        raise Wrong("no")


WRONG = {"double": {"the same": lambda x: x, "right, really": lambda x: 2 * x}}
"""


@pytest.mark.slow
def test_a_careless_lesson_is_run_shown_and_told_all_that_is_wrong(tmp_path, monkeypatch, capsys):
    path = tmp_path / "98_careless.py"
    path.write_text(CARELESS, encoding="utf-8")
    solution = "def double(x):\n    return 2 * x\n"
    for folder, text in (("checks", LENIENT), ("solutions", solution)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["prove", str(path), "--out", str(tmp_path / "figures")])
    assert validate_lesson.main() == 1
    printed = capsys.readouterr().out
    for part in (
        "twice two is 4",
        "answer: 4",
        "no figure is shown",
        "forgotten lacks a checker",
        "a hint of forgotten uses np: its cell must begin with `import numpy as np`",
        "the stub is 'passed' (), expected 'wrong'",
        "the solution has no docstring",
        "2 wrong answers; expected at least 3",
        "the message to 'the same' helps nobody",
        "'right, really' is 'passed'",
    ):
        assert part in printed, part


@pytest.mark.slow
def test_a_lesson_that_fails_is_reported(tmp_path):
    path = tmp_path / "99_fails.py"
    path.write_text(BROKEN.replace("x = 1", "assert False, 'no longer true'"), encoding="utf-8")
    problems, run = validate_lesson.prove_lesson(validate_lesson.parse_lesson(path), tmp_path)
    assert run == {}
    assert "no longer true" in problems[-1]
