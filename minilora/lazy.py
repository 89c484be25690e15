"""A package's public names, each imported when it is first used (PEP 562).

A face lists its names once, in the form that editors and type checkers read:

    if TYPE_CHECKING:
        from .layer import LoRALayer

    __getattr__, __dir__ = lazy_imports(__name__)

``lazy_imports`` reads that list from the source. A face costs nothing until a name is used, so
``minilora --help`` answers without importing torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

Lookup = Callable[[str], Any]


def lazy_imports(package: str) -> tuple[Lookup, Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose imports stand under ``if TYPE_CHECKING:``.

    A submodule is found by its name too. Both raise ``AttributeError`` for an unknown name.

    >>> import minilora.lora
    >>> minilora.lora.LoraConfig(r=4).r, minilora.lora.layer.__name__
    (4, 'minilora.lora.layer')
    """
    face = sys.modules[package]
    homes = {name: module for module, name in imports_for_types(face)}

    def look_up(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name], package), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            value = importlib.import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(face, name, value)  # found once, it is an ordinary attribute
        return value

    return look_up, lambda: sorted({*vars(face), *homes})


def imports_for_types(face: Any) -> Iterator[tuple[str, str]]:
    """(relative module, name) of each import under a module's ``if TYPE_CHECKING:``."""
    for node in ast.parse(face.__spec__.loader.get_source(face.__name__)).body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                if line.module:  # ``from . import nf4`` is found as a submodule
                    home = "." * line.level + line.module
                    yield from ((home, each.name) for each in line.names)
