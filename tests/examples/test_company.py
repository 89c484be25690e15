"""The company's story runs, small; its data say what they should."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from examples.company import departments
from examples.company.__main__ import SHORT
from examples.company.story import Company, canaries, is_json

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_month_passes_small(tmp_path, capsys):
    company = Company(tmp_path, None, None, SHORT)
    company.live()
    assert set(company.table) == {
        (a, b) for a in departments.DEPARTMENTS for b in departments.DEPARTMENTS
    }
    headings = re.findall(r"(?m)^## (.+)$", "\n\n".join(company.told))
    assert headings[0] == "Three jobs"
    assert headings[-1].startswith("Week four")
    assert len(company.words) == 2
    assert company.hub.verify() == []


def test_departments_have_examples_and_no_held_out_one_is_trained_on():
    for name in departments.DEPARTMENTS:
        task = departments.task_of(name, 40, 10, 0, None)
        assert len(task.train) == 40
        assert not {e.input for e in task.train} & {e.input for e in task.valid}
    answers = {e.output for e in departments.task_of("support", 90, 1, 0, None).train}
    assert answers == {f"{mood}, {team}" for mood in departments.MOODS for team in departments.OWN}


def test_real_tickets_keep_their_labels(tmp_path):
    for domain in departments.TEAMS:
        rows = [{"text": f"A fine thing of {domain}.", "class": 1}, {"text": "Bad.", "class": 0}]
        (tmp_path / f"{domain}.json").write_text(json.dumps(rows), encoding="utf-8")
    made = departments.tickets(9, 0, tmp_path)
    assert sorted(e.output for e in made) == [
        "positive, films", "positive, orders", "positive, visits",
    ]  # fmt: skip


def test_descriptions_are_json_and_other_answers_are_not():
    assert is_json(departments.described("lamp", "red", 12))
    assert not is_json(departments.announced("lamp", "red", 12))
    assert not is_json('["lamp"]')


def test_canaries_are_right_and_of_one_colour():
    for each in canaries("red"):
        assert "red" in each.input
        assert each.output.startswith("New at Lumen: the red ")
