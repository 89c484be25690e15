"""The watch: saves are judged once, when they are whole, and only what changed."""

import io

import pytest
from rich.console import Console

from minilora.commands.cli import main
from minilora.learn import exercise
from minilora.learn.cells import parse_lesson
from minilora.learn.judge import Verdict
from minilora.learn.record import Record
from minilora.learn.watch import Watch

from .test_learn import CHECKS, LESSON, SOLUTION


@pytest.fixture
def desk(tmp_path):
    """A course of one lesson with one exercise, and an empty folder of a learner."""
    for name, text in (("", LESSON), ("checks", CHECKS), ("solutions", SOLUTION)):
        (tmp_path / "course" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "course" / name / "01_two.py").write_text(text, encoding="utf-8")
    (tmp_path / "mine").mkdir()
    return parse_lesson(tmp_path / "course" / "01_two.py"), tmp_path / "mine"


def watch(desk, saves, monkeypatch):
    """Watch while these texts are saved, one a look (None: no save); what it said and judged."""
    lesson, folder = desk
    file, judged = folder / lesson.path.name, []

    def judge(lesson, name, file, limit):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        judged.append(text)
        status = "passed" if "2 * x" in text else "wrong"
        return Verdict(status, "" if status == "passed" else "for n = 1 it is 3")

    monkeypatch.setattr(exercise, "judge_file", judge)
    console, coming = Console(file=io.StringIO(), width=80), iter(saves)

    def sleep(seconds):
        text = next(coming, "end")
        if text == "end":
            raise KeyboardInterrupt
        if text is not None:
            file.write_text(text, encoding="utf-8")

    record = Record(folder)
    done = Watch([lesson], record, console, lambda _: file).go(sleep)
    return done, judged[1:], console.file.getvalue(), record


def test_each_save_is_judged_until_all_has_passed(desk, monkeypatch):
    wrong, right = "def double(x): return 3 * x\n", "def double(x): return 2 * x\n"
    saves = [wrong, None, None, None, right, None]
    done, judged, said, record = watch(desk, saves, monkeypatch)
    assert done
    assert judged == [wrong, right]
    assert "Not yet. for n = 1 it is 3" in said
    assert "Everything here has passed." in said
    entry = record.exercise("01_two", "double")
    assert (entry["passed"], entry["tries"]) == (True, 3)
    assert (record.folder / "solutions" / "01_two.py").is_file()


def test_half_a_save_is_not_judged_and_ctrl_c_ends_the_watch(desk, monkeypatch):
    half, whole = "def double(x): ret", "def double(x): return 3 * x\n"
    done, judged, said, _ = watch(desk, [half, whole, None, None, whole], monkeypatch)
    assert not done
    assert judged == [whole]
    assert said.rstrip().endswith("No longer watching.")


def test_the_command_takes_no_other_option(tmp_path, capsys):
    desk = ["--folder", str(tmp_path)]
    assert main(["learn", "5", "--watch", "--reset", *desk]) == 2
    assert "minilora learn 5 --watch" in capsys.readouterr().err
