"""The bug zoo: see a bug beside the right line, release it, and watch which test catches it.

    minilora zoo                     the list
    minilora zoo "merge twice"       one of them: its story, both lines, the test

A bug is released by compiling its function with the wrong line and giving the function that code:
whoever imported it, under whatever name, runs the bug until the context ends. tests/bugs/ releases
each bug and runs the test that its entry names.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from ..text import columns, did_you_mean
from .bug import Bug
from .catalog import BUGS

PACKAGE = __name__.partition(".")[0]


def find_bug(name: str) -> Bug:
    """The bug of this name. Raises ``ValueError`` that suggests the nearest name.

    >>> find_bug("two zeros").where
    'lora.layer:LoRALayer.reset_parameters'
    """
    for bug in BUGS:
        if bug.name == name:
            return bug
    hint = did_you_mean(name, [bug.name for bug in BUGS], "minilora zoo lists them", cutoff=0.3)
    raise ValueError(f"no bug is named {name!r}; {hint}")


def describe_all() -> str:
    """Every bug on one line: its name, its function, the thread about it.

    >>> describe_all().splitlines()[-1].partition(": ")[0].endswith("bugs. Look at one")
    True
    """
    rows = [(bug.name, bug.where, bug.thread or "–") for bug in BUGS]
    hint = f"{len(BUGS)} bugs. Look at one: minilora zoo {BUGS[0].name!r}"
    return "\n".join([*columns(rows), hint])


def describe(bug: Bug) -> str:
    """The story, the right line and the wrong one, and the test that catches it.

    >>> print(describe(find_bug("two zeros")))
    two zeros, in lora.layer:LoRALayer.reset_parameters
    <BLANKLINE>
    Both factors start at zero. Each one's gradient is a product with the other, so neither ever
    moves.
    See Guitaricet/relora #18
    <BLANKLINE>
      right  nn.init.uniform_(self.lora_A, -bound, bound)
      wrong  nn.init.zeros_(self.lora_A)
    <BLANKLINE>
    caught by tests/test_invariants.py::test_4_a_new_adapter_can_learn
    """
    lines = [f"{bug.name}, in {bug.where}", "", *textwrap.wrap(bug.story, 96)]
    lines += [f"See {bug.thread}"] if bug.thread else []
    lines += ["", f"  right  {hanging(bug.right)}", f"  wrong  {hanging(bug.wrong)}", ""]
    return "\n".join([*lines, f"caught by tests/{bug.caught_by}"])


def hanging(code: str) -> str:
    """A function's lines without indentation; later ones stand under the first, in column 10."""
    return textwrap.dedent(f"    {code.strip()}").replace("\n", "\n       ")


@contextmanager
def release(bug: Bug) -> Iterator[None]:
    """Inside this context the package has the bug; afterwards it is as it was.

    >>> from minilora import LoraConfig
    >>> with release(find_bug("unscaled alpha")):
    ...     LoraConfig(r=8, lora_alpha=16).scaling
    16
    >>> LoraConfig(r=8, lora_alpha=16).scaling
    2.0
    """
    module, function = home(bug)
    right_code = function.__code__
    function.__code__ = wrong_code(bug, module, function)
    clear_caches()
    try:
        yield
    finally:
        function.__code__ = right_code
        clear_caches()


def home(bug: Bug) -> tuple[Any, Any]:
    """A bug's module and its plain function, without the decorators or the property around it."""
    module_name, _, path = bug.where.partition(":")
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    owner: Any = module
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    attribute = inspect.getattr_static(owner, name)
    function = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
    return module, inspect.unwrap(function)


def wrong_code(bug: Bug, module: Any, function: Any) -> CodeType:
    """The function's code with the wrong line.

    Raises ``ValueError`` unless the right line stands in its source exactly once.
    """
    source = inspect.getsource(function)
    if (times := source.count(bug.right)) != 1:
        raise ValueError(
            f"{bug.name}: expected its right line once in {bug.where}, found it {times} times"
        )
    changed = textwrap.dedent(source.replace(bug.right, bug.wrong))
    # without decorators: they are around the function already
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    plain = changed[changed.index("async def " if asynchronous else "def ") :]
    # super() reads __class__ from around its function
    around = function.__code__.co_freevars
    whole = (
        "from __future__ import annotations\n"
        f"def outer({', '.join(around)}):\n{textwrap.indent(plain, '    ')}\n"
        f"    return {function.__name__}"
    )
    names = dict(vars(module))
    exec(compile(whole, f"<zoo: {bug.name}>", "exec"), names)
    return names["outer"](*around).__code__


def clear_caches() -> None:
    """Clear the cached tables of the modules whose results depend on the code."""
    for name in ("nf4.codebook", "nf4.tensor"):
        for value in vars(importlib.import_module(f"{PACKAGE}.{name}")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
