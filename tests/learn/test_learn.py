"""The walk, the judge, the record, grading and notebooks, driven as a learner would drive them."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from minilora.commands.cli import main
from minilora.commands.learn import done_text
from minilora.learn import Wrong, check, close, judge, show, terminal
from minilora.learn.cells import parse_lesson, same_answer, split_cells
from minilora.learn.course import (
    find_lesson,
    find_lessons,
    list_lessons,
    load_module,
    load_solutions,
)
from minilora.learn.figures import STAGE
from minilora.learn.grade import Grade, grade_folders, grade_tables
from minilora.learn.judge import judge_file
from minilora.learn.notebook import make_notebook
from minilora.learn.pieces import needed_pieces, own_machine
from minilora.learn.record import Record
from minilora.learn.run import child_environment
from minilora.learn.submissions import plain_file
from minilora.learn.walk import Walk
from minilora.learn.workspace import FOLDER, learners_folder, open_answer_file, working_in

LESSON = """# %% [markdown]
# # 01 · What is two and two?
#
# Know first: nothing · Difficulty ●○○ · 1 minute to read · 1 second to run

# %% [predict] total
# What is 2 + 2?
# answer: total

# %%
total = 2 + 2
print("α total", total)

# %% [markdown]
# It is {{ total }}.

# %% [exercise] double
def double(x):
    raise NotImplementedError("TODO")

# %% [hints] double
# 1. where
# 2. how
# 3. 2 * x

# %%
check(double)

# %% [markdown]
# The end of it.
"""
CHECKS = """from hypothesis.strategies import integers
from minilora.learn import cases, close

@cases(n=integers(0, 99))
def check_double(answer, n):
    close(answer(n), n + n, what="2n", case=f"n = {n}")
"""
SOLUTION = 'def double(x):\n    """Twice x."""\n    return 2 * x\n'


@pytest.fixture
def lesson(tmp_path):
    """A course of one quick lesson."""
    for name, text in (("", LESSON), ("checks", CHECKS), ("solutions", SOLUTION)):
        folder = tmp_path / "course" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "01_two.py").write_text(text, encoding="utf-8")
    return parse_lesson(tmp_path / "course" / "01_two.py")


def walk(lesson, folder, monkeypatch, capsys, *typed, limit=60):
    """Walk with these lines typed; returns the output, and whether the end was reached."""
    lines = iter(typed)

    def type_line(prompt=""):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line() if callable(line) else line

    monkeypatch.setattr("builtins.input", type_line)
    done = Walk(lesson, folder, asking=True, limit=limit).go()
    return capsys.readouterr().out, done


@pytest.mark.slow
def test_a_lesson_is_walked_from_start_to_end(lesson, tmp_path, monkeypatch, capsys):
    desk = tmp_path / "mine"

    def solve():
        (desk / "01_two.py").write_text(
            "def double(x):\n    print('hello')\n    return x + x\n", encoding="utf-8"
        )
        return ""

    out, done = walk(lesson, desk, monkeypatch, capsys, "4", "", "", "h", "h", "h", "h", solve)
    assert done
    parts = ("α total 4", "You were right", "It is 4.", "Still to do", "Hint 3 of 3")
    assert all(part in out for part in (*parts, "hello", "Passed", "The end of it"))
    entry = json.loads((desk / "progress.json").read_text(encoding="utf-8"))["lessons"]["01_two"]
    assert entry["finished"]
    assert entry["predictions"]["total"] == {"said": "4", "answer": 4, "right": True}
    exercise = {"passed": True, "tries": 2, "hints": 3, "revealed": False}
    assert entry["exercises"]["double"] == exercise
    assert "return 2 * x" in (desk / "solutions" / "01_two.py").read_text(encoding="utf-8")


def test_a_lessons_code_finds_the_folder_of_who_walks_it(lesson, tmp_path, monkeypatch, capsys):
    shown = "from minilora.learn.workspace import learners_folder\nprint(learners_folder())"
    text = LESSON.replace('print("α total", total)', shown)
    lesson.path.write_text(text, encoding="utf-8")
    out, _ = walk(parse_lesson(lesson.path), tmp_path / "desk", monkeypatch, capsys, "", "")
    assert str(tmp_path / "desk") in out.replace("\n", "")
    assert learners_folder() == FOLDER


@pytest.mark.slow
def test_what_a_checker_says_of_a_right_answer_is_told(lesson, tmp_path, monkeypatch, capsys):
    counted = CHECKS.replace("def check_double(answer, n)", "def check_cases(answer, n)")
    counted += (
        "\n\ndef check_double(answer):\n    check_cases(answer)\n    return '[3 of 3] equal'\n"
    )
    (lesson.path.parent / "checks" / "01_two.py").write_text(counted, encoding="utf-8")
    (tmp_path / "01_two.py").write_text(SOLUTION, encoding="utf-8")
    out, _ = walk(lesson, tmp_path, monkeypatch, capsys, "", "", "", "")
    assert "Passed. [3 of 3] equal. A solution" in " ".join(out.split())


def test_a_lesson_goes_on_where_it_was_left_and_remembers_the_prediction(
    lesson, tmp_path, monkeypatch, capsys
):
    assert walk(lesson, tmp_path, monkeypatch, capsys, "5", "q")[1] is False
    out, done = walk(lesson, tmp_path, monkeypatch, capsys, "", "s")
    assert done
    assert "continues at cell 3" in out
    assert "Not as predicted: you said 5, it is 4." in out
    assert not (tmp_path / "solutions").exists(), "a skipped exercise shows no solution"


def test_coming_back_shows_what_was_being_read(lesson, tmp_path, monkeypatch, capsys):
    walk(lesson, tmp_path, monkeypatch, capsys, "[5]", "q")
    out, _ = walk(lesson, tmp_path, monkeypatch, capsys, "", "q")
    assert out.index("What is 2 + 2?") < out.index("You said: [5]") < out.index("total = 2 + 2")
    assert "you said [5], it is 4" in out
    out, _ = walk(lesson, tmp_path, monkeypatch, capsys, "q")
    assert "It is 4." in out, "the text above the exercise, with its numbers"
    assert "def double(x):" in out


def test_a_choice_is_asked_for_again_and_the_answer_is_spelled_out(
    lesson, tmp_path, monkeypatch, capsys
):
    text = lesson.path.read_text(encoding="utf-8")
    choices = '# - a) three\n# - b) four\n# answer: "b"\n'
    lesson.path.write_text(text.replace("# answer: total\n", choices), encoding="utf-8")
    typed = ("help", "c", "A)", "help", "", "code", "q")
    out, _ = walk(parse_lesson(lesson.path), tmp_path, monkeypatch, capsys, *typed)
    assert out.count("a or b?") == 2
    assert "Not as predicted: you said A), it is b) four." in out
    assert "Here Enter continues and q leaves" in out
    assert "Your code goes into" in out


def test_predictions_that_one_cell_settles_are_told_apart(lesson, tmp_path, monkeypatch, capsys):
    text = lesson.path.read_text(encoding="utf-8")
    second = "# answer: total\n\n# %% [predict] half_of_it\n# And half?\n# answer: total / 2\n"
    lesson.path.write_text(text.replace("# answer: total\n", second), encoding="utf-8")
    out, _ = walk(parse_lesson(lesson.path), tmp_path, monkeypatch, capsys, "4", "3", "", "q")
    assert "You were right, total: you said 4, it is 4." in out
    assert "Not as predicted, half of it: you said 3, it is 2." in out


def test_cells_that_were_skipped_do_not_count_as_read(lesson, tmp_path, monkeypatch, capsys):
    assert main(["learn", str(lesson.path), "--from", "4", "--folder", str(tmp_path)]) == 0
    walk(lesson, tmp_path, monkeypatch, capsys, "q")
    entry = Record(tmp_path).lesson("01_two")
    assert (entry["cell"], entry["seen"]) == (6, [3, 4, 5])
    assert done_text(lesson, entry) == "37%, built 0 of 1"
    _, done = walk(lesson, tmp_path, monkeypatch, capsys, "s")
    entry = Record(tmp_path).lesson("01_two")
    assert (done, entry["finished"]) == (True, True)
    assert done_text(lesson, entry) == "62%, built 0 of 1"
    walk(lesson, tmp_path, monkeypatch, capsys, "", "", "s")
    assert done_text(lesson, Record(tmp_path).lesson("01_two")) == "read, built 0 of 1"


def test_progress_of_version_0_1_counts_what_was_read(tmp_path):
    old = {"cell": 4, "finished": False, "seconds": 1.0, "predictions": {}, "exercises": {}}
    (tmp_path / "progress.json").write_text(json.dumps({"lessons": {"01_two": old}}))
    assert Record(tmp_path).lesson("01_two")["seen"] == [0, 1, 2, 3]


def test_the_last_lesson_names_no_next_one(lesson, tmp_path, monkeypatch, capsys):
    out, done = walk(lesson, tmp_path, monkeypatch, capsys, "", "", "s")
    assert done
    assert "Next: minilora learn for the course." in out
    (lesson.path.parent / "02_three.py").touch()
    out, _ = walk(lesson, tmp_path, monkeypatch, capsys, "", "", "s")
    assert "Next: minilora learn 2, or" in out


def test_wide_output_continues_behind_the_bar():
    out = io.StringIO()
    counted = terminal.Counted(out, 10)
    counted.write("loss 0.125 -> 0.5\n\nab")
    counted.write("c")
    counted.close_line()
    assert out.getvalue().splitlines() == ["  │ loss 0.125", "  │    -> 0.5", "  │ ", "  │ abc"]
    assert counted.lines == 4


@pytest.mark.parametrize("width", [20, 34, 80])
def test_a_long_line_of_code_goes_on_further_right_and_loses_no_word(width, monkeypatch):
    source = "def f(x):\n    # a comment of some length\n\n    return x_name + other(1, 2)\n"
    monkeypatch.setenv("COLUMNS", str(width + 2))
    console = terminal.make_console()
    lines = console.render_lines(terminal.code(source), console.options, pad=False)
    rows = ["".join(part.text for part in line).rstrip()[2:] for line in lines]
    assert all(len(row) <= width for row in rows)
    assert " ".join(rows).split() == source.split()
    starts = [len(row) - len(row.lstrip()) for row in rows if row]
    assert starts == {20: [0, 4, 8, 4, 8], 34: [0, 4, 4], 80: [0, 4, 4]}[width]
    assert "" in rows  # the empty line stays


def test_a_docstring_goes_on_below_its_own_start(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    source = '    """What it does,\n\n    in more words than fit."""\n    return some(x, of_it)\n'
    console = terminal.make_console()
    lines = console.render_lines(terminal.code(source), console.options, pad=False)
    rows = ["".join(part.text for part in line).rstrip()[2:] for line in lines]
    assert rows[-4:-2] == ["    in more words than", '    fit."""']
    assert rows[-2:] == ["    return some(x,", "        of_it)"]


def test_a_file_that_python_cannot_read_is_answered_without_a_process(
    lesson, tmp_path, monkeypatch
):
    def start(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    file = tmp_path / "01_two.py"
    file.write_text("def double(x):\n    retrun 2 * x\n", encoding="utf-8")
    verdict = judge_file(lesson, "double", file)
    assert (verdict.status, verdict.message) == (
        "error",
        "Python cannot read 01_two.py: line 2, `retrun 2 * x`: invalid syntax",
    )


@pytest.mark.slow
def test_of_what_the_learner_s_code_prints_the_end_is_shown(lesson, tmp_path, monkeypatch, capsys):
    (tmp_path / "01_two.py").write_text(
        "for n in range(10**4):\n    print('line', n)\ndef double(x):\n    return x.nothing\n",
        encoding="utf-8",
    )
    out, _ = walk(lesson, tmp_path, monkeypatch, capsys, "", "", "", "q")
    assert "your code printed, at the end (10 lines):\nline 9990\n" in out
    assert "line 9999\nIt does not run: your line 4" in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pty on Windows")
def test_lesson_one_is_walked_in_a_real_terminal_of_80_by_24(tmp_path):
    import fcntl
    import pty
    import select
    import struct
    import termios

    primary, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = child_environment()
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    walker = subprocess.Popen(
        [sys.executable, "-m", "minilora.commands.cli", "learn", "1"],
        cwd=tmp_path,
        env=environment | {"TERM": "xterm"},
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
    )
    os.close(terminal)
    seen = []

    def read_to(end=" > "):
        """Read the screen until it ends like this, and keep it as plain text."""
        given, plain, deadline = b"", "", time.monotonic() + 60
        while not plain.endswith(end):
            ready, _, _ = select.select([primary], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{end!r} never came, after {plain!r}"
            given += os.read(primary, 4096)
            text = given.decode(errors="ignore").replace("\r", "")
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
        seen.append(plain)

    try:
        # two cells, a wrong key, a cell, a guess, the run, away
        for typed in ("", "", "help", "", "3", "", "q"):
            read_to()
            os.write(primary, f"{typed}\n".encode())
        read_to("Left. Continue with: minilora learn 1\n")
        assert walker.wait(20) == 0
    finally:
        walker.kill()
        walker.wait()
        os.close(primary)
    assert "01 · What does a linear layer do, and learn?" in seen[0]
    assert "Here Enter continues and q leaves" in "".join(seen)
    assert "Not as predicted: you said 3, it is 1." in "".join(seen)
    for screen in seen:
        lines = screen.split("\n")
        assert max(map(len, lines)) <= 80
        # a code cell may be taller than the screen, but no text is pushed off unread
        assert len(lines) <= 48
    entry = Record(tmp_path / "minilora-lessons").lessons["01_one_matmul"]
    assert entry["predictions"]["rows_that_light_up"]["said"] == "3"


@pytest.mark.slow
def test_without_a_terminal_it_runs_straight_through_and_plain(tmp_path):
    plain = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "minilora.commands.cli", "learn", "1"],
        cwd=tmp_path,
        env=child_environment() | plain,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    out = run.stdout.decode("cp1252")
    assert run.returncode == 0, run.stderr.decode()
    assert "Difficulty *.." in out
    assert "dW" in out
    assert "\x1b" not in out
    assert "figure" in out
    assert not (tmp_path / "minilora-lessons" / "progress.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("def double(x):\n    return 3 * x\n", "wrong", "largest error is 1, where"),
        ("def double(x) return\n", "error", "line 1"),
        ("def double(x):\n    while True: pass\n", "timeout", "a loop that never ends"),
        ("import sys\nsys.exit(0)\n", "error", "sys.exit"),
        ("import os\nos._exit(0)\n", "error", "before an answer came"),
        (
            "import no_such_thing\n",
            "error",
            "line 1, `import no_such_thing`, raised ModuleNotFoundError",
        ),
        (
            "def double(x):\n    y = x\n    return y.size\n",
            "error",
            "line 3, `return y.size`, raised AttributeError",
        ),
        ("other = 1\n", "error", "has no function double"),
        ("def double(x):\n    raise KeyboardInterrupt\n", "error", "KeyboardInterrupt"),
        ("print('x' * 10**7)\ndef double(x):\n    return 2 * x\n", "passed", ""),
    ],
)
def test_whatever_a_learner_writes_is_answered_in_a_sentence(
    lesson, tmp_path, source, status, message
):
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    verdict = judge_file(lesson, "double", file, limit=6 if status == "timeout" else 60)
    assert verdict.status == status
    assert message in verdict.message
    assert len(verdict.printed) <= 2000


@pytest.mark.slow
def test_a_check_that_waits_for_a_busy_machine_is_no_loop(lesson, tmp_path, monkeypatch):
    """A limit of processor seconds; where the system cannot count them, of the clock's."""
    file = tmp_path / "mine.py"
    text = "import time\n\ntime.sleep(16)\n\n\ndef double(x):\n    return 2 * x\n"
    file.write_text(text, encoding="utf-8")
    assert judge_file(lesson, "double", file, limit=15).status == "passed"
    monkeypatch.setattr(judge, "COUNTS_PROCESSOR", False)
    verdict = judge_file(lesson, "double", file, limit=2)
    assert (verdict.status, verdict.message[:35]) == (
        "timeout",
        "it was still running after 2 second",
    )


@pytest.mark.slow
def test_the_learner_s_file_is_completed_never_overwritten(lesson, tmp_path):
    file = open_answer_file(lesson, tmp_path)
    assert judge_file(lesson, "double", file).status == "to do"
    file.write_text("mine = 1\n", encoding="utf-8")
    open_answer_file(lesson, tmp_path)
    assert file.read_text(encoding="utf-8").startswith("mine = 1\n\ndef double")
    file.write_text("def double(x): return 1\n", encoding="utf-8")
    open_answer_file(lesson, tmp_path)
    assert file.read_text(encoding="utf-8") == "def double(x): return 1\n"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"lessons": 3}', '{"lessons": {"a": {}}}', "\xff\x00", '{"lessons": {"a": []}}'],
)
def test_a_broken_progress_file_is_set_aside_with_a_message(tmp_path, text):
    (tmp_path / "progress.json").write_bytes(text.encode("latin-1"))
    record = Record(tmp_path)
    assert "set aside as progress-broken-1.json" in record.note
    assert (tmp_path / "progress-broken-1.json").read_bytes() == text.encode("latin-1")
    record.lesson("01_two")["cell"] = 2
    record.save()
    assert Record(tmp_path).lesson("01_two")["cell"] == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills with a signal")
def test_progress_is_whole_after_a_kill_at_any_moment(tmp_path):
    code = "import sys; from pathlib import Path; from minilora.learn.record import Record\n"
    code += "r = Record(Path(sys.argv[1]))\nprint('ready', flush=True)\n"
    code += "for n in range(10**9):\n    r.lesson(f'{n % 300:02}_x')['cell'] = n\n    r.save()\n"
    for pause in (0.0, 0.013, 0.05, 0.121):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=child_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdout.readline()
        time.sleep(0.2 + pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        record = Record(tmp_path)
        assert record.note == ""
        assert record.lessons


@pytest.mark.slow
def test_a_class_is_graded_whatever_is_in_the_folders(tmp_path, capsys, monkeypatch):
    lesson = find_lesson(1)
    right = (lesson.path.parent / "solutions" / lesson.path.name).read_text(encoding="utf-8")
    sources = {
        "ada": right,
        "bob": "while True: pass\n",
        "=cid()": "import sys; sys.exit(0)\n",
        "empty": None,
    }
    for name, source in sources.items():
        (tmp_path / "class" / name).mkdir(parents=True)
        if source is not None:
            (tmp_path / "class" / name / lesson.path.name).write_text(source, encoding="utf-8")
    (tmp_path / "class" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    folders = [f"class/{name}" for name in sources] + ["class/*.txt"]
    assert main(["grade", *folders, "--lesson", "1", "--csv", "g.csv", "--limit", "20"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^ada +P +1 of 1", printed)
    assert "notes.txt is not a folder: left out" in printed
    sentence = "01 weight_gradient: timeout. it was still running after 20 seconds"
    assert sentence in printed.replace("\n", " ")
    written = (tmp_path / "g.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbf"), "Excel reads UTF-8 by its byte order mark"
    rows = list(csv.reader(io.StringIO(written.decode("utf-8-sig"))))
    assert [row[3] for row in rows] == ["status", "passed", "timeout", "error", "to do"]
    assert rows[3][0] == "'=cid()", "a spreadsheet must not compute a name"


def test_a_folder_that_is_not_there_is_named_before_anything_is_graded(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada").mkdir()
    for arguments, sentence in {
        ("ada", "nobody"): "there is no folder nobody; nothing was graded",
        ("class/*",): "there is no folder class",
        ("ada", "--csv", "ada"): "got ada, which is a folder",
        ("ada", "--lesson", "5-1"): "a range goes up",
        ("ada", "--lesson", "1-99"): "there is no lesson '",
    }.items():
        assert main(["grade", *arguments]) == 2, arguments
        output = capsys.readouterr()
        assert sentence in output.err
        assert not output.out
    (tmp_path / "ada.zip").touch()
    assert main(["grade", "ada.zip"]) == 2
    assert "unpack" in capsys.readouterr().err


def fill_in(lesson, text):
    """A lesson's script with a learner's function where the stub was."""
    stub = lesson.exercises["weight_gradient"].text
    script = lesson.path.read_text(encoding="utf-8")
    assert stub in script
    return script.replace(stub, text)


RIGHT = (
    "def weight_gradient(dy, x):\n    return np.tensordot(dy, x, axes=(range(dy.ndim - 1),) * 2)\n"
)


@pytest.mark.parametrize("lesson", list_lessons(), ids=lambda lesson: lesson.slug)
def test_what_is_kept_of_a_filled_in_lesson_can_be_imported(lesson, tmp_path):
    kept = plain_file(lesson.path, lesson, tmp_path)
    assert kept.parent == tmp_path
    script, whole = (file.read_text(encoding="utf-8") for file in (kept, lesson.path))
    names: dict = {"__name__": "handed_in"}
    exec(compile(script, str(kept), "exec"), names)
    assert set(lesson.exercises) <= set(names)
    assert script.count("\n") == whole.count("\n")


@pytest.mark.slow
def test_whatever_form_is_handed_in_is_graded(tmp_path):
    lesson = find_lesson(1)
    name, notebook = lesson.path.name, make_notebook(lesson)
    stub = lesson.exercises["weight_gradient"].text
    for cell in notebook["cells"]:
        if "".join(cell["source"]) == stub:
            cell["source"] = RIGHT
    forms = {
        "walked": {f"minilora-lessons/{name}": "import numpy as np\n" + RIGHT},
        "zipped": {f"homework/minilora-lessons/{name}": "import numpy as np\n" + RIGHT},
        # other cells do not run
        "script": {name: fill_in(lesson, RIGHT).replace("# %%\n", "# %%\nraise SystemExit\n")},
        "notebook": {
            name: lesson.path.read_text(encoding="utf-8"),
            f"{lesson.slug}.ipynb": json.dumps(notebook),
        },
        "broken notebook": {f"{lesson.slug}.ipynb": "{"},
        "renamed": {"lesson1.py": RIGHT, "91_bias_trains.py": RIGHT},  # a repair is no stray
        "empty": {},
    }
    for learner, files in forms.items():
        (tmp_path / learner).mkdir()
        for file, text in files.items():
            (tmp_path / learner / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / learner / file).write_text(text, encoding="utf-8")
    lines = []
    grades = grade_folders([tmp_path / learner for learner in forms], [lesson], say=lines.append)
    assert [grade.status for grade in grades] == [*["passed"] * 4, "error", "to do", "to do"]
    reason = "it is not a notebook as Jupyter saves it"
    assert grades[4].message == f"01_one_matmul.ipynb could not be read: {reason}"
    assert grades[5].message == "there is no file 01_one_matmul.py; there is lesson1.py"
    assert "renamed (6 of 7)" in lines
    assert "  not graded, as no lesson has this name: lesson1.py" in lines
    assert lines[-1] == "  none of the lessons' files is in this folder"


def test_a_class_of_twenty_and_the_whole_course_fit_eighty_columns():
    from rich.console import Console

    lessons = list_lessons()
    grades = [
        Grade(f"learner-{n}", lesson.slug, name, "wrong" if n == 3 else "passed", "")
        for n in range(20)
        for lesson in lessons
        for name in lesson.exercises
    ]
    console = Console(width=80, file=io.StringIO())
    for table in (tables := grade_tables(grades)):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 21 * len(tables)
    total = sum(len(lesson.exercises) for lesson in lessons)
    assert lines[1 - 21].rstrip().endswith(f"{total} of {total}")
    assert sum(line.count("W") for line in lines[4::21]) == total
    assert "…" not in "".join(lines)


def test_a_notebook_shows_the_figure_under_the_cell(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    shown = []
    shell = SimpleNamespace(kernel=object())
    fake = SimpleNamespace(get_ipython=lambda: shell, version_info=(9, 0))
    display = SimpleNamespace(display=shown.append, Image=lambda **given: given)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    figure = Figure()
    figure.subplots().plot([1, 2])
    monkeypatch.chdir(tmp_path)
    token = STAGE.set(None)
    show(figure, "A line that goes up")
    fake.get_ipython = lambda: None  # IPython is imported, but no notebook runs
    show(figure, "A line that goes up")
    STAGE.reset(token)
    assert [given["metadata"] for given in shown] == [{"alt": "A line that goes up"}]
    assert (tmp_path / shown[0]["filename"]).is_file()
    assert capsys.readouterr().out.startswith("figure: ")


def test_notebooks_for_a_class_are_made_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["notebook", "1-3"]) == 0
    names = [f"{lesson.slug}.ipynb" for lesson in list_lessons()[1:4]]
    assert sorted(file.name for file in tmp_path.glob("*.ipynb")) == names
    assert main(["notebook", "1", "2"]) == 2
    assert "minilora notebook 1-5" in capsys.readouterr().err
    assert not (tmp_path / "2").exists()


def test_the_notebook_is_valid_and_says_all_that_the_lesson_says():
    nbformat = pytest.importorskip("nbformat")
    lesson = find_lesson(1)
    made = make_notebook(lesson)
    nbformat.validate(nbformat.from_dict(made))
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert len(made["cells"]) - len(code) == sum(
        cell.kind in ("markdown", "predict", "hints") for cell in lesson.cells
    )
    ran = [cell.text for cell in lesson.cells if cell.kind in ("code", "exercise")]
    lines = [line for cell in code for line in "".join(cell["source"]).split("\n") if line]
    assert lines == [line for text in ran for line in text.split("\n") if line]
    assert "weight_gradient" in json.dumps(made)
    folded = ["".join(cell["source"]) for cell in code if cell["metadata"]]
    assert folded
    assert all(text.startswith(("@in_house_style", "show(")) for text in folded)


def sources_of(cells):
    """The text of each cell of a notebook."""
    return ["".join(cell["source"]) for cell in cells]


def test_a_question_in_a_notebook_keeps_its_numbers():
    cells = make_notebook(find_lesson(7))["cells"]
    question = next(
        text for cell in cells if "worst afterwards" in (text := "".join(cell["source"]))
    )
    assert "every weight, rate 0.001" in question
    cells = make_notebook(find_lesson(18))["cells"]
    assert any("learns `FEW` facts" in text for text in sources_of(cells))


def test_a_notebook_s_exercise_comes_with_the_pieces_that_it_needs(tmp_path):
    """Lesson 25's, run as a notebook does and graded: the learner's own pieces or the course's."""
    lesson = find_lesson(25)
    sources = sources_of(make_notebook(lesson)["cells"])
    asked = [text for text in sources if text.startswith("# pieces:")]
    assert len(asked) == 2
    (tmp_path / "03_low_rank_update.py").write_text("def lora_gradients(*_):\n    return 'mine'\n")
    names: dict = {}
    with working_in(tmp_path):
        for text in asked:
            exec(text, names)
    assert names["lora_gradients"]() == "mine"
    assert names["merge_once"] is not None
    machine, yours = own_machine("fine_tune", tmp_path, names)
    assert not yours  # the stub is no machine
    names["fine_tune"] = lambda *_: "losses"
    machine, yours = own_machine("fine_tune", tmp_path, names)
    assert yours
    assert machine.fine_tune() == "losses"
    assert machine.lora_gradients() == "mine"


def test_a_notebook_of_the_capstone_is_graded_with_its_pieces(tmp_path):
    lesson = find_lesson(25)
    file = tmp_path / f"{lesson.slug}.ipynb"
    file.write_text(json.dumps(make_notebook(lesson)), encoding="utf-8")
    graded = load_module(plain_file(file, lesson, tmp_path))
    names = {name for cell in lesson.exercises.values() for name in needed_pieces(cell.text)}
    assert len(names) == 9
    assert all(callable(getattr(graded, name)) for name in names)


def test_the_commands_say_what_they_need(tmp_path, capsys):
    desk = ["--folder", str(tmp_path)]
    assert main(["learn", "99", *desk]) == 2
    assert (
        "there is no lesson '99'; there are 00_start_here, 01_one_matmul" in capsys.readouterr().err
    )
    assert main(["learn", "1", "--from", "999", *desk]) == 2
    assert main(["learn", "--reset", *desk]) == 2
    assert main(["learn", "1", "--reveal", *desk]) == 0
    assert "def weight_gradient" in capsys.readouterr().out
    assert main(["learn", *desk]) == 0
    assert "What does a linear layer do" in capsys.readouterr().out
    assert main(["learn", "1", "--reset", *desk]) == 0
    assert Record(tmp_path).lessons == {}
    assert main(["notebook", "1", str(tmp_path / "n.ipynb")]) == 0


def test_a_lesson_of_your_own_is_found_by_its_path(lesson, tmp_path, capsys, monkeypatch):
    slugs = [one.slug for one in find_lessons([str(lesson.path), "1-2", "2"])]
    assert slugs == ["01_two", "01_one_matmul", "02_rank"]
    names: dict = {}
    exec(compile(SOLUTION, str(lesson.path), "exec"), names)
    check(names["double"])
    assert capsys.readouterr().out == "double: passed\n"
    monkeypatch.chdir(tmp_path)
    assert main(["notebook", str(lesson.path)]) == 0
    assert main(["notebook", "mine/14_gone.py"]) == 2


@pytest.mark.slow
def test_proving_a_lesson_that_is_not_done_says_what_it_lacks(lesson, monkeypatch, capsys):
    from minilora.learn import validate_lesson

    (lesson.path.parent / "checks" / lesson.path.name).unlink()
    header = lesson.path.parent / "02_header.py"
    header.write_text("# %% [markdown]\n# Hello.\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["prove", "--quiet", str(header), "gone.py", str(lesson.path)])
    assert validate_lesson.main() == 1
    printed = capsys.readouterr().out
    assert "02_header.py is not a lesson yet: 02_header.py: the first cell must be" in printed
    assert "gone.py is not a lesson yet" in printed
    assert "double: expected checks/01_two.py and solutions/01_two.py" in printed
    assert "the section '## Explain' is missing" in printed


def test_check_never_raises(capsys):
    def weight_gradient(dy, x):
        raise KeyError("y")

    check(weight_gradient)
    check(test_check_never_raises)
    check(load_solutions(find_lesson(1).path).weight_gradient)
    out = capsys.readouterr().out
    assert "KeyError" in out
    assert "no exercise of the course has this name" in out
    assert "weight_gradient: passed" in out


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "is None"),
        ("text", "must be numbers"),
        (
            np.zeros((3, 2)),
            "has shape (3, 2), a right answer has (2, 3): it has the shape of the transpose",
        ),
        (np.zeros((2, 3)), "zero everywhere"),
        (2 * np.arange(6.0).reshape(2, 3), "2.00 times"),
        (-np.arange(6.0).reshape(2, 3), "wrong sign"),
        (np.full((2, 3), np.nan), "not finite"),
    ],
)
def test_close_says_what_is_wrong(result, message):
    with pytest.raises(Wrong) as raised:
        close(result, np.arange(6.0).reshape(2, 3), what="m")
    assert message in str(raised.value)


def test_predictions_are_compared_kindly():
    assert same_answer("95", 100)
    assert not same_answer("80", 100)
    assert same_answer("b) it does not fall", "b")
    assert not same_answer("about", 3)
    assert same_answer("about 3, as the change", 3)
    assert same_answer("Four.", 4)
    assert same_answer("~30 %", 30)
    assert same_answer("-2e-3 or so", -0.002)
    assert not same_answer("3 or 4", 3)
    assert not same_answer("phone", 1)
    assert not same_answer("bad", "b")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("# %% [prose]\n# x", "a cell is one of"),
        ("# %% [predict] p\n# question", "must end with 'answer"),
        ("# %% [markdown]\nx = 1", "every line"),
        ("# %% [hints] h\n# 1. one", "has 1 hints, expected 3"),
        ("# %% [exercise] f\ndef g(): pass", "one function of that name"),
        ("# %% [predict]\n# answer: 1", "has a name"),
    ],
)
def test_the_parser_says_which_line_is_wrong(cell, message):
    with pytest.raises(ValueError, match="lesson, line ") as raised:
        split_cells(cell)
    assert message in str(raised.value)


def test_a_figure_opens_where_there_is_a_screen(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(terminal.sys, "platform", "linux")
    monkeypatch.setattr(terminal.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(terminal.subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert not terminal.open_file(tmp_path)
    monkeypatch.setenv("DISPLAY", ":0")
    assert terminal.open_file(tmp_path)
    assert started == [["xdg-open", str(tmp_path)]]


def test_a_guess_without_a_number_is_no_guess(lesson, tmp_path, monkeypatch, capsys):
    out, _ = walk(lesson, tmp_path, monkeypatch, capsys, "no idea", "", "")
    assert "The answer to the prediction: 4 (no idea is no number)" in " ".join(out.split())
    entry = json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))["lessons"][
        "01_two"
    ]
    assert entry["predictions"]["total"] == {"said": "no idea"}


def test_the_course_says_where_to_go_on(tmp_path, capsys):
    main(["learn", "--folder", str(tmp_path)])
    fresh = capsys.readouterr().out
    assert "Begin with: minilora learn 0" in fresh
    assert "from lessons behind you" not in fresh
    record = Record(tmp_path)
    for number in ("0", "1"):
        record.lesson(find_lesson(number).slug)["finished"] = True
    record.save()
    main(["learn", "--folder", str(tmp_path)])
    later = capsys.readouterr().out
    assert "Go on with: minilora learn 2" in later
    assert "A quiz from lessons behind you" in later


def test_a_long_cell_shows_its_seconds_and_its_output_takes_them_away():
    stream = io.StringIO()
    output = terminal.Counted(stream, 70)
    with output.alive(every=0.02):
        while "…" not in stream.getvalue():
            time.sleep(0.01)
        print("hello", file=output)
    last = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    assert last == ["  │ hello", ""]
    assert output.lines == 1


def test_a_picture_is_told_in_words(capsys):
    terminal.make_console().print(terminal.prose("![a thin pair beside W](lora.svg)"))
    assert capsys.readouterr().out.strip() == "Picture: a thin pair beside W."
