"""The house: three shelves of wings, imports point down, files stay readable, every public name is documented."""

import ast
import graphlib
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import minilora
from minilora.learn.house import SHELVES, draw_house, imports

PACKAGE = Path(minilora.__file__).parent
GROUND = {"lazy", "level0", "files", "text"}  # the modules that stand alone, under every wing
FLAT: dict[str, str] = {}
WINGS = ["lazy", *(wing for shelf in SHELVES.values() for wing in shelf)]
FLOOR = {wing: floor for floor, wing in enumerate(WINGS)}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [file.relative_to(PACKAGE).with_suffix("").as_posix() for file in FILES]
LONGER = {  # lines since the code was set to 100 columns; each is on its way to 300 or less
    "commands/finetune": 310,
    "formats/save_and_load": 340,
    "learn/walk": 320,
    "ledger/estimate": 320,
    "ledger/shapes": 400,
    "lora/layer": 310,
    "lora/selection": 310,
    "model/transformer": 390,
    "nf4/tensor": 320,
    "plots/charts": 410,
    "recipes/pretrain": 370,
    "training/data": 340,
    "training/loop": 380,
}
ABOVE_ALL = {"__init__", "__main__"}  # the package's own face


def imported_modules(module):
    """The modules of the package, as paths, that a module imports; of a wing's name, the wing's face."""
    package = ".".join(["minilora", *module.split("/")[:-1]])
    for name in imports((PACKAGE / f"{module}.py").read_text(encoding="utf-8"), package):
        parts = name.split(".")[1:]
        while (
            parts
            and "/".join(parts) not in MODULES
            and "/".join([*parts, "__init__"]) not in MODULES
        ):
            parts.pop()
        yield "/".join(parts) if "/".join(parts) in MODULES else "/".join([*parts, "__init__"])


def wing_of(module):
    """The wing, or the module on the ground, that a module belongs to."""
    first = module.split("/")[0]
    return FLAT.get(first, first)


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
    deeper = line.replace("minilora", "minilora.learn")
    assert [name.removesuffix(".y") for name in imports(deeper, "minilora.learn")] == [
        "minilora.learn.x"
    ]
    assert list(imports("from ..files import x", "minilora.learn")) == ["minilora.files.x"]
    assert list(imports("import minilora, torch\nfrom torch import nn", "minilora.learn")) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ABOVE_ALL])
def test_imports_point_down(module):
    wing = wing_of(module)
    assert wing in FLOOR, (
        f"{module} stands in no wing of the plan: give {wing} a place in this test"
    )
    for other in imported_modules(module):
        assert other not in ABOVE_ALL, (
            f"{module} imports from the whole package, which stands above it"
        )
        below = wing_of(other)
        assert FLOOR[below] <= FLOOR[wing], (
            f"{module} imports {other}, and {below} stands above {wing}"
        )
        if "/" in module and below == wing:
            assert other != f"{wing}/__init__", (
                f"{module} imports from the face of its own wing, which stands above it"
            )


@pytest.mark.parametrize("wing", WINGS)
def test_no_circle_inside_a_wing(wing):
    inside = [module for module in MODULES if wing_of(module) == wing]
    arrows = {
        module: {other for other in imported_modules(module) if other in inside and other != module}
        for module in inside
    }
    # raises CycleError
    assert len(list(graphlib.TopologicalSorter(arrows).static_order())) == len(inside)


def test_the_picture_of_the_house_is_of_this_house():
    """``python -m minilora.learn.house docs/house.svg`` draws it anew."""
    assert (PACKAGE.parent / "docs" / "house.svg").read_text(encoding="utf-8") == draw_house()


def test_no_module_lies_flat_but_those_in_the_plan():
    flat = {module for module in MODULES if "/" not in module} - ABOVE_ALL
    assert flat <= GROUND | set(FLAT)


def test_the_wheel_holds_every_wing():
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"(?ms)^packages = \[(.*?)\]", text)
    named = set(re.findall(r'"([\w.]+)"', listed[1]))
    folders = {
        file.parent.relative_to(PACKAGE.parent).as_posix().replace("/", ".")
        for file in PACKAGE.rglob("__init__.py")
    }
    lessons = {"minilora.lessons", "minilora.lessons.checks", "minilora.lessons.solutions"}
    assert named == folders | lessons


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_readable(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert source.count("\n") <= LONGER.get(module, 300), "is it two rooms?"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 110, f"{node.name} cannot be seen at once"


def public_names():
    for name in minilora.__all__:
        found = getattr(minilora, name)
        yield from (
            [f"{name}.{inner}" for inner in found.__all__] if inspect.ismodule(found) else [name]
        )


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_a_docstring_with_an_example(name):
    found = attrgetter(name)(minilora)
    if callable(found):  # ledger's CATEGORIES and their like are plain tuples
        assert ">>> " in (found.__doc__ or ""), f"{name} has no example"


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
    return [
        minilora,
        *(
            importlib.import_module(f"minilora.{file.parent.name}")
            for file in PACKAGE.glob("*/__init__.py")
        ),
    ]


@pytest.mark.parametrize("face", faces(), ids=attrgetter("__name__"))
def test_a_face_lists_the_names_that_it_has_and_hides_no_module(face):
    listed = getattr(face, "__all__", [])
    tree = ast.parse(Path(face.__file__).read_text(encoding="utf-8"))
    named = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(listed) == named - {"TYPE_CHECKING", "lazy_imports"}
    for name in listed:
        value = getattr(face, name)
        beside = importlib.util.find_spec(f"{face.__name__}.{name}")
        assert inspect.ismodule(value) or beside is None, f"{name} hides the module of its name"
    assert set(listed) <= set(dir(face))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'minilora' has no attribute 'injekt'"):
        _ = minilora.injekt
    assert not hasattr(minilora.lora, "_private")


def loaded(code):
    """Which heavy packages are loaded after some code in a fresh process."""
    heavy = ("torch", "matplotlib", "rich", "hypothesis", "tokenizers", "transformers")
    code = f"import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n    {code}\nprint(*[m for m in {heavy} if m in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_library_loads_what_it_needs_and_no_more():
    assert loaded("import minilora") == []
    assert loaded("import minilora; minilora.merge, minilora.train, minilora.load_adapter") == [
        "torch"
    ]


@pytest.mark.parametrize(
    "words", [["--help"], ["learn"], ["zoo"], ["zoo", "two zeros"], ["lern"], []]
)
def test_a_command_that_needs_no_torch_does_not_load_it(words, tmp_path):
    assert "torch" not in loaded(
        f"import os; os.chdir({str(tmp_path)!r}); from minilora.commands.cli import main; main({words!r})"
    )


def test_level_0_needs_no_torch():
    tree = ast.parse((PACKAGE / "level0.py").read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "statistics", "typing", "numpy", "numpy.typing"}
