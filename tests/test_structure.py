"""The house: imports point down, files stay readable, every public name is documented."""

import ast
import inspect
from operator import attrgetter
from pathlib import Path

import pytest

import minilora

PACKAGE = Path(minilora.__file__).parent
FLOORS = [
    {"bugs", "level0", "config", "transformer", "tokenizer", "files", "progress", "watch"},
    {"codebook"},
    {"nf4"},
    {"lora", "qlora", "packed", "shapes", "config_json"},
    {"activations", "storage", "match", "pretrained", "data", "checkpoint", "history", "smollm2", "fingerprint", "peft_files"},
    {"inject", "zoo", "batches", "evaluate", "audit_data", "flops", "requantize"},
    {"merge", "changes", "adapter", "train", "pretrain", "plan"},
    {"plots", "ledger"},
    {"footprint", "charts"},
    {"gallery"},
    {"demo", "page"},
    {"planner", "finetune"},
    {"learn"},
    {"cli"},
]
LEARN = [  # inside minilora/learn/
    {"cells", "stage", "record", "face", "pages"},
    {"course", "desk", "run", "notebook"},
    {"checking", "rooms", "handin"},
    {"judge", "prove", "book"},
    {"walk", "grade"},
    {"commands"},
]
MODULES = sorted(file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__"))
FLOOR = {module: level for level, floor in enumerate(FLOORS) for module in floor}


def imports(source, folder):
    """Names of the modules of a folder that a module in it imports, whether it says ``.x`` or ``minilora.x``."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            parents = folder.split(".")[: 1 - node.level or None] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix(f"{folder}.").split(".")[0] for name in names if name.startswith(f"{folder}."))


def imports_of(module):
    """The same of a module of the package, by its path."""
    folder = ".".join(["minilora", *module.split("/")[:-1]])
    return set(imports((PACKAGE / f"{module}.py").read_text(encoding="utf-8"), folder))


IMPORTS = """from .x import y
from . import x
import minilora.x
import minilora.x as y
from minilora.x import y
from minilora import x
if later: from minilora import x"""


@pytest.mark.parametrize("line", IMPORTS.splitlines())
def test_an_import_is_seen_however_it_is_written(line):
    assert list(imports(line, "minilora")) == ["x"]
    assert list(imports(line.replace("minilora", "minilora.learn"), "minilora.learn")) == ["x"]
    assert list(imports("from ..files import x\nimport minilora, torch\nfrom torch import nn", "minilora.learn")) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert module in FLOOR, f"give {module} a floor in this test"
    for other in imports_of(module):
        assert other in FLOOR, f"{module} imports {other} from the whole package, which stands above it"
        assert FLOOR[other] < FLOOR[module], f"{module} (floor {FLOOR[module]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("module", sorted(file.stem for file in (PACKAGE / "learn").glob("[a-z]*.py")))
def test_imports_of_the_lessons_engine_point_down(module):
    floor = {name: level for level, names in enumerate(LEARN) for name in names}
    assert module in floor, f"give learn/{module} a floor in this test"
    for other in imports_of(f"learn/{module}"):
        assert floor[other] < floor[module], f"learn/{module} imports learn/{other}"


@pytest.mark.parametrize("module", [*MODULES, *(f"learn/{name}" for floor in LEARN for name in sorted(floor))])
def test_modules_stay_readable(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    # transformer.py holds a whole model and its generation, as a reader would want them
    assert source.count("\n") <= (340 if module == "transformer" else 300), "is it two rooms?"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} cannot be seen at once"


def public_names():
    for name in minilora.__all__:
        found = getattr(minilora, name)
        yield from [f"{name}.{inner}" for inner in found.__all__] if inspect.ismodule(found) else [name]


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


@pytest.mark.slow
def test_importing_minilora_brings_in_nothing_that_is_needed_later_only():
    import subprocess
    import sys

    code = "import sys, minilora; print([m for m in ('matplotlib', 'rich', 'tokenizers', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_level_0_needs_no_torch():
    tree = ast.parse((PACKAGE / "level0.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "statistics", "typing", "numpy", "numpy.typing"}
