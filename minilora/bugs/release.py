"""The bug zoo: see a bug beside the right line, let it loose, and watch which test catches it.

    minilora zoo                     the list
    minilora zoo "merge twice"       one of them: its story, both lines, the test

A bug is released by compiling its function with the wrong line and giving the function that code: whoever imported it, under
whatever name, runs the bug from then on, until the context ends. tests/zoo/ does so with each and runs the test that it names.
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
from .catalog import BUGS, Bug

PACKAGE = __name__.partition(".")[0]


def find_bug(name: str) -> Bug:
    """The bug of this name. Raises ``ValueError`` that says which name could be meant.

    >>> find_bug("two zeros").where
    'lora.layer:LoRALayer.reset_parameters'
    """
    for bug in BUGS:
        if bug.name == name:
            return bug
    hint = did_you_mean(name, [bug.name for bug in BUGS], "minilora zoo lists them", cutoff=0.3)
    raise ValueError(f"no bug is called {name!r}; {hint}")


def describe_all() -> str:
    """Every bug on one line: its name, its home, the thread about it."""
    rows = [(bug.name, bug.where, bug.thread or "–") for bug in BUGS]
    return "\n".join(
        [*columns(rows), f"{len(BUGS)} bugs. Look at one: minilora zoo {BUGS[0].name!r}"]
    )


def describe(bug: Bug) -> str:
    """The story, the right line and the wrong one, and the test that catches it.

    >>> print(describe(find_bug("two zeros")))
    two zeros, in lora.layer:LoRALayer.reset_parameters
    <BLANKLINE>
    Both factors start at zero. Each one's gradient is a product with the other, so neither ever moves.
    See Guitaricet/relora #18
    <BLANKLINE>
      right  nn.init.uniform_(self.lora_A, -bound, bound)
      wrong  nn.init.zeros_(self.lora_A)
    <BLANKLINE>
    caught by tests/test_invariants.py::test_4_a_new_adapter_can_learn
    """
    right, wrong = (
        textwrap.dedent(f"    {text.strip()}").replace("\n", "\n       ")
        for text in (bug.right, bug.wrong)
    )
    story = [*textwrap.wrap(bug.story, 110), *([f"See {bug.thread}"] if bug.thread else [])]
    lines = ["", f"  right  {right}", f"  wrong  {wrong}", "", f"caught by tests/{bug.caught_by}"]
    return "\n".join([f"{bug.name}, in {bug.where}", "", *story, *lines])


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
    healthy, ill = function.__code__, sick_code(bug, module, function)
    function.__code__ = ill
    forget_results()
    try:
        yield
    finally:
        function.__code__ = healthy
        forget_results()


def home(bug: Bug) -> tuple[Any, Any]:
    """The module of a bug and its plain function, without decorators, properties or staticmethods around it."""
    module_name, _, path = bug.where.partition(":")
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    owner: Any = module
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    found = inspect.getattr_static(owner, name)
    found = getattr(found, "__func__", getattr(found, "fget", found))
    return module, inspect.unwrap(found)


def sick_code(bug: Bug, module: Any, function: Any) -> CodeType:
    """The function's code with the wrong line. Raises ``ValueError`` when the right one does not stand there exactly once."""
    source = inspect.getsource(function)
    if source.count(bug.right) != 1:
        raise ValueError(
            f"{bug.name}: its right line stands {source.count(bug.right)} times in {bug.where}, needed once"
        )
    names = dict(vars(module))
    changed = textwrap.dedent(source.replace(bug.right, bug.wrong))
    # without decorators: they are around the function already
    plain = changed[changed.index("def ") :]
    # super() reads __class__ from around its function
    outer = f"def around({', '.join(function.__code__.co_freevars)}):\n"
    whole = f"{outer}{textwrap.indent(plain, '    ')}\n    return {function.__name__}"
    exec(
        compile(f"from __future__ import annotations\n{whole}", f"<zoo: {bug.name}>", "exec"), names
    )
    return names["around"](*function.__code__.co_freevars).__code__


def forget_results() -> None:
    """Empty the caches of the tables that depend on the code."""
    for name in ("nf4.codebook", "nf4.tensor"):
        for value in vars(importlib.import_module(f"{PACKAGE}.{name}")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
