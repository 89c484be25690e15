"""The house: wings on three shelves, imports that point down, readable files, documented names."""

import ast
import graphlib
import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import minilora
from minilora.learn.drawings import draw_decision, draw_lora
from minilora.learn.house import SHELVES, draw_house, imports

PACKAGE = Path(minilora.__file__).parent
GROUND = {
    "lazy",
    "level0",
    "files",
    "tensor_files",
    "text",
    "checks",
    "database",
}  # alone, under every wing
WINGS = ["lazy", *(wing for shelf in SHELVES.values() for wing in shelf)]
FLOOR = {wing: floor for floor, wing in enumerate(WINGS)}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [file.relative_to(PACKAGE).with_suffix("").as_posix() for file in FILES]
LONGER: dict[str, int] = {}  # lines of modules that have a reason to be longer than 300
ABOVE_ALL = {"__init__", "__main__"}  # the package's own face


def imported_modules(module):
    """The modules of the package that a module imports, as paths; for a wing, the wing's face."""
    package = ".".join(["minilora", *module.split("/")[:-1]])
    for name in imports((PACKAGE / f"{module}.py").read_text(encoding="utf-8"), package):
        parts = name.split(".")[1:]
        while not {"/".join(parts), "/".join([*parts, "__init__"])} & set(MODULES):
            parts.pop()
        yield "/".join(parts) if "/".join(parts) in MODULES else "/".join([*parts, "__init__"])


def wing_of(module):
    """The wing, or the module on the ground, that a module belongs to."""
    return module.split("/")[0]


LINES = """from .x import y
from . import x
import minilora.x
import minilora.x as y
from minilora.x import y
from minilora import x
if later: from minilora import x"""


@pytest.mark.parametrize("line", LINES.splitlines())
def test_an_import_is_seen_however_it_is_written(line):
    assert [name.removesuffix(".y") for name in imports(line, "minilora")] == ["minilora.x"]
    deeper = imports(line.replace("minilora", "minilora.learn"), "minilora.learn")
    assert [name.removesuffix(".y") for name in deeper] == ["minilora.learn.x"]
    assert list(imports("from ..files import x", "minilora.learn")) == ["minilora.files.x"]
    assert list(imports("import minilora, torch\nfrom torch import nn", "minilora.learn")) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ABOVE_ALL])
def test_imports_point_down(module):
    wing = wing_of(module)
    assert wing in FLOOR, f"{module} is in no wing of the plan: give {wing} a place in SHELVES"
    for other in imported_modules(module):
        below = wing_of(other)
        assert other not in ABOVE_ALL, f"{module} imports from the package, which stands above it"
        assert FLOOR[below] <= FLOOR[wing], f"{module} imports {other}, but {below} is above {wing}"
        if "/" in module:
            assert other != f"{wing}/__init__", f"{module} imports from the face of its own wing"


@pytest.mark.parametrize("wing", WINGS)
def test_no_circle_inside_a_wing(wing):
    inside = {module for module in MODULES if wing_of(module) == wing}
    arrows = {module: inside & set(imported_modules(module)) - {module} for module in inside}
    in_order = graphlib.TopologicalSorter(arrows).static_order()  # raises CycleError
    assert len(list(in_order)) == len(inside)


def test_the_picture_of_the_house_is_of_this_house():
    """``python -m minilora.learn.house docs/house.svg`` draws it anew."""
    assert (PACKAGE.parent / "docs" / "house.svg").read_text(encoding="utf-8") == draw_house()


def test_a_wheel_s_lessons_are_no_wing_of_the_picture(tmp_path):
    """Where it is installed, the lessons lie in the package: the book's page draws that."""
    installed = tmp_path / "minilora"
    shutil.copytree(PACKAGE, installed, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(PACKAGE.parent / "lessons", installed / "lessons")
    assert draw_house(installed) == draw_house()


def test_the_drawings_are_those_of_the_code():
    """``python -m minilora.learn.drawings docs`` makes them anew."""
    docs = PACKAGE.parent / "docs"
    assert (docs / "lora.svg").read_text(encoding="utf-8") == draw_lora()
    assert (docs / "decide.svg").read_text(encoding="utf-8") == draw_decision()


def test_no_module_lies_flat_but_those_in_the_plan():
    flat = {module for module in MODULES if "/" not in module} - ABOVE_ALL
    assert flat <= GROUND


def test_the_wheel_holds_every_wing():
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"(?ms)^packages = \[(.*?)\]", text)
    named = set(re.findall(r'"([\w.]+)"', listed[1]))
    faces = [file.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("__init__.py")]
    folders = {".".join(face.parts[:-1]) for face in faces}
    courses = ("minilora.lessons", "minilora.lessons.repairs")
    lessons = {f"{course}{part}" for course in courses for part in ("", ".checks", ".solutions")}
    assert named == folders | lessons


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_readable(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert source.count("\n") <= LONGER.get(module, 300), "does it hold two ideas?"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} cannot be seen at once"


def test_no_exception_outlives_its_reason():
    for module, lines in LONGER.items():
        source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
        assert 300 < source.count("\n") <= lines, f"{module} needs no exception"


def public_names():
    """What ``minilora`` offers, and what the face of each wing does, as ``hub.Hub``."""
    for name in minilora.__all__:
        if not inspect.ismodule(getattr(minilora, name)):
            yield name
    for wing in sorted({wing_of(module) for module in MODULES if module.endswith("/__init__")}):
        face = importlib.import_module(f"minilora.{wing}")
        yield from (f"{wing}.{name}" for name in getattr(face, "__all__", ()))


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_a_docstring_with_an_example(name):
    value = attrgetter(name)(minilora)
    if callable(value):  # ledger's CATEGORIES and their like are plain tuples
        assert ">>> " in (value.__doc__ or ""), f"{name} has no example"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_every_module_class_and_function_says_what_it_is(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says nothing"
    for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not speaks_for_itself(node):
                assert ast.get_docstring(node), f"{node.name} has no docstring"


def speaks_for_itself(node):
    """An overload, a method of Python's or of torch's own, and a private one."""
    overload = any(getattr(each, "id", "") == "overload" for each in node.decorator_list)
    return overload or node.name.startswith("_") or node.name in ("forward", "backward")


def faces():
    """The package and every wing, as modules."""
    wings = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
    return [minilora, *(importlib.import_module(f"minilora.{wing}") for wing in wings)]


@pytest.mark.parametrize("face", faces(), ids=attrgetter("__name__"))
def test_a_face_lists_the_names_that_it_has_and_hides_no_module(face):
    listed = getattr(face, "__all__", [])
    named = imported_names(Path(face.__file__))
    assert set(listed) == named - {"TYPE_CHECKING", "lazy_imports"}
    for name in listed:
        value = getattr(face, name)
        beside = importlib.util.find_spec(f"{face.__name__}.{name}")
        assert inspect.ismodule(value) or beside is None, f"{name} hides the module of its name"
    assert set(listed) <= set(dir(face))


def imported_names(file):
    """The names that a file's ``from … import …`` lines bring."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    lines = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in lines for alias in node.names}


@pytest.mark.parametrize("face", faces()[1:], ids=attrgetter("__name__"))
def test_a_face_names_every_file_of_its_wing_and_no_other(face):
    files = {file.name for file in Path(face.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.py\b", face.__doc__)) == files


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'minilora' has no attribute 'injekt'"):
        _ = minilora.injekt
    assert not hasattr(minilora.lora, "_private")


def loaded(code):
    """Which heavy packages are loaded after some code in a fresh process."""
    heavy = ("torch", "matplotlib", "rich", "hypothesis", "tokenizers", "transformers")
    quiet = "with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):"
    lines = ["import contextlib, io, sys", "sink = io.StringIO()", quiet, f"    {code}"]
    lines.append(f"print(*[name for name in {heavy} if name in sys.modules])")
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_library_loads_what_it_needs_and_no_more():
    assert loaded("import minilora") == []
    names = "minilora.merge, minilora.train, minilora.load_adapter"
    assert loaded(f"import minilora; {names}") == ["torch"]


WITHOUT_TORCH = [["--help"], ["learn"], ["zoo"], ["zoo", "two zeros"], ["lern"], []]
WITHOUT_TORCH += [["jobs", "list"], ["jobs", "quota", "--max-jobs", "2"]]


@pytest.mark.parametrize("words", WITHOUT_TORCH)
def test_a_command_that_needs_no_torch_does_not_load_it(words, tmp_path):
    elsewhere = f"import os; os.chdir({str(tmp_path)!r})"
    main = f"from minilora.commands.cli import main; main({words!r})"
    assert "torch" not in loaded(f"{elsewhere}; {main}")


def test_level_0_needs_no_torch():
    nodes = list(ast.walk(ast.parse((PACKAGE / "level0.py").read_text(encoding="utf-8"))))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    for node in nodes:
        imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    assert imported == {"__future__", "statistics", "typing", "numpy", "numpy.typing"}
