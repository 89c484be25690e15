"""One file of a learner's own pieces: theirs where they have one, the course's elsewhere."""

import re

import pytest

from minilora.learn import pieces
from minilora.learn.course import find_lesson, load_module
from minilora.learn.judge import judge_file
from minilora.learn.pieces import (
    courses_machine,
    gather_pieces,
    own_machine,
    solution_of,
    source_of,
)
from minilora.learn.workspace import open_answer_file

OWN = '''import math

import torch


def init_factors(size_in, size_out, r):
    """Mine."""
    bound = 1 / math.sqrt(size_in)
    return torch.empty(r, size_in).uniform_(-bound, bound), torch.zeros(size_out, r)


def first_two_steps(a_is_zero, b_is_zero):
    raise NotImplementedError("TODO")
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "04_why_b_is_zero.py").write_text(OWN, encoding="utf-8")
    return tmp_path


def test_own_pieces_come_with_their_imports_and_the_course_fills_the_rest(folder):
    text = gather_pieces(["init_factors", "first_two_steps", "lora_gradients"], folder)
    assert text.startswith("import math\nimport torch\n")
    assert '"""Mine."""' in text
    assert text.count("# yours, of lesson 04") == 1
    assert text.count("# the course's, of lesson 04") == 1  # a stub is no piece
    assert "# the course's, of lesson 03\ndef lora_gradients" in text
    namespace = {}
    exec(text, namespace)
    assert namespace["first_two_steps"](False, True) == ("B", "AB")


def test_a_start_that_is_broken_is_no_piece_until_it_is_repaired(tmp_path):
    file = open_answer_file(find_lesson(7), tmp_path)
    text = file.read_text(encoding="utf-8")
    assert "optimizer.zero_grad()\n        optimizer.step()" in text  # the broken order
    assert source_of("train_steps", file) is None
    assert "# the course's, of lesson 07\ndef train_steps" in gather_pieces(
        ["train_steps"], tmp_path
    )
    file.write_text(text.replace("    losses = []", "    losses = []  # looking"), encoding="utf-8")
    assert source_of("train_steps", file) is None  # a comment repairs nothing
    repaired = text.replace("losses.append(loss_of(batch))", "losses.append(loss_of(batch).item())")
    file.write_text(repaired, encoding="utf-8")
    assert "# yours, of lesson 07\ndef train_steps" in gather_pieces(["train_steps"], tmp_path)


HELPED = """from __future__ import annotations

import functools
import math

SHIFT = BASE = 4
UNUSED = 1


class Tools:
    shift = SHIFT


def halve(x):
    return x // 2


@functools.cache
def table(n):
    return [halve(i) << Tools.shift for i in range(n)]


def pack_nibbles(codes):
    return table(len(codes))
"""


def test_helpers_and_constants_of_a_learners_file_come_along(tmp_path):
    (tmp_path / "10_four_bits.py").write_text(HELPED, encoding="utf-8")
    text = gather_pieces(["pack_nibbles", "unpack_nibbles"], tmp_path)
    assert "__future__" not in text
    assert "UNUSED" not in text
    namespace = {}
    exec(text, namespace)
    assert namespace["pack_nibbles"]([0, 0, 0]) == [0, 0, 16]
    assert text.index("SHIFT = BASE") < text.index("class Tools") < text.index("@functools.cache")


def test_two_helpers_of_one_name_are_not_mixed_up(tmp_path):
    (tmp_path / "10_four_bits.py").write_text(HELPED, encoding="utf-8")
    other = "def halve(x):\n    return x / 2\n\n\ndef merge_once(W, A, B, alpha):\n"
    file = tmp_path / "13_merge.py"
    file.write_text(other + "    return halve(2 * W) + B @ A\n", encoding="utf-8")
    text = gather_pieces(["pack_nibbles", "merge_once"], tmp_path)
    assert text.count("def halve") == 1
    assert "# the course's, of lesson 13 (yours needs another halve than the one above)" in text
    file.write_text(HELPED.replace("pack_nibbles", "merge_once"), encoding="utf-8")
    text = gather_pieces(["pack_nibbles", "merge_once"], tmp_path)  # the same helpers: once
    assert text.count("def halve") == 1
    assert "# yours, of lesson 13\ndef merge_once" in text


SCATTERED = """try:
    from math import isqrt as root
except ImportError:
    root = None
if True:
    BITS = 4
else:
    BITS = 8
LEVELS = [1, 1, 1]
LEVELS[0] = BITS
LEVELS.append(root(9))
TOTAL = 0
TOTAL += 10
for level in LEVELS:
    TOTAL += level
COPIES = [TOTAL for TOTAL in range(0)]
print("a trial", TOTAL)


def pack_nibbles(codes):
    return TOTAL


if __name__ == "__main__":
    TOTAL = -1
"""


def test_what_stands_under_if_try_and_for_comes_along_and_so_does_every_change(tmp_path):
    (tmp_path / "10_four_bits.py").write_text(SCATTERED, encoding="utf-8")
    text = gather_pieces(["pack_nibbles"], tmp_path)
    assert "# yours, of lesson 10\n" in text
    assert "trial" not in text
    assert "COPIES" not in text
    namespace = {"__name__": "pieces"}
    exec(text, namespace)
    assert namespace["pack_nibbles"]([]) == 10 + 4 + 1 + 1 + 3
    assert text.count("TOTAL += 10") == 1


def test_a_piece_that_needs_what_its_file_does_not_define_is_the_courses(tmp_path):
    made = 'globals()["SHIFT"] = 4\n\n\ndef pack_nibbles(codes):\n    return SHIFT\n'
    (tmp_path / "10_four_bits.py").write_text(made, encoding="utf-8")
    text = gather_pieces(["pack_nibbles"], tmp_path)
    assert "of lesson 10 (yours uses SHIFT, which its file does not define)" in text
    assert "return SHIFT" not in text


def test_a_solution_never_runs_with_a_learners_helper(tmp_path, monkeypatch):
    """Where its helper has the name of one that is taken, it is imported."""
    (tmp_path / "10_four_bits.py").write_text(HELPED, encoding="utf-8")
    course = tmp_path / "course" / "13_merge.py"
    (course.parent / "solutions").mkdir(parents=True)
    solution = "def halve(x):\n    return x / 2\n\n\ndef merge_once(W):\n    return halve(W)\n"
    (course.parent / "solutions" / course.name).write_text(solution, encoding="utf-8")
    right = pieces.lesson_of
    monkeypatch.setattr(
        pieces, "lesson_of", lambda name: course if name == "merge_once" else right(name)
    )
    monkeypatch.setattr(pieces, "is_to_do", lambda function: False)
    text = gather_pieces(["pack_nibbles", "merge_once"], tmp_path)
    assert text.count("def halve") == 1
    assert "import solution_of" in text
    assert text.endswith('# the course\'s, of lesson 13\nmerge_once = solution_of("merge_once")\n')


def test_a_file_that_python_cannot_read_is_left_out(folder):
    (folder / "04_why_b_is_zero.py").write_text("def init_factors(:", encoding="utf-8")
    assert source_of("init_factors", folder / "04_why_b_is_zero.py") is None
    assert "the course's" in gather_pieces(["init_factors"], folder)


def test_the_capstones_file_begins_with_the_pieces_and_runs(folder):
    lesson = find_lesson(25)
    file = open_answer_file(lesson, folder)
    text = file.read_text(encoding="utf-8")
    assert text.index('"""Mine."""') < text.index("def adapted_layer") < text.index("def fine_tune")
    assert text.index("def inject_by_name") < text.index("def fine_tune")
    assert load_module(file).pack_nibbles is not None
    assert open_answer_file(lesson, folder).read_text(encoding="utf-8") == text


def test_a_machine_is_the_learners_once_it_is_no_stub(folder):
    open_answer_file(find_lesson(25), folder)
    assert own_machine("fine_tune", folder)[1] is False
    file = folder / "25_capstone.py"
    file.write_text("def fine_tune():\n    return 'mine'\n", encoding="utf-8")
    machine, yours = own_machine("fine_tune", folder)
    assert yours
    assert machine.fine_tune() == "mine"
    assert courses_machine("fine_tune").fine_tune is not machine.fine_tune


def test_an_unknown_piece_is_named():
    with pytest.raises(ValueError, match="no lesson has an exercise 'nothing'"):
        solution_of("nothing")


@pytest.mark.long
def test_one_file_of_pieces_and_glue_passes_both_checkers_of_the_capstone(tmp_path):
    lesson = find_lesson(25)
    file = open_answer_file(lesson, tmp_path)
    text = file.read_text(encoding="utf-8")
    first, second = (text.index(f"# pieces: {name}") for name in ("init_factors", "inject_by_name"))
    rest = text[text.index("# the course's", first) : second]
    glue = (lesson.path.parent / "solutions" / lesson.path.name).read_text(encoding="utf-8")
    own = re.sub(r"(?m)^.*solution_of.*\n", "", glue)
    file.write_text(text[:first] + rest + own, encoding="utf-8")
    for name in lesson.exercises:
        verdict = judge_file(lesson, name, file, limit=400)
        assert verdict.status == "passed", f"{name}: {verdict.message}"
        if name == "fine_tune":  # four runs of 24 factors; which of them have our bits is rounding
            same = r"[1-9]\d* of 96 factors are equal to this package's to the bit"
            assert re.fullmatch(same, verdict.message)
