"""The shapes of a model, from a preset's name, a ``config.json`` or a list.

A preset *is* the part of a Hugging Face ``config.json`` that decides shapes (``presets.json``), so
a preset, a dict and a file all go one way::

    config.json -> family (``model_type``) -> a LinearShape for every Linear, and the other sizes

Left out: models of images and sound. Give such a model as a list of shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..files import read_json
from ..text import nearest
from .dimensions import Architecture, LinearShape, whole
from .families import FAMILIES
from .mixtures import DENSE, mixture

LEDGER = Path(__file__).parent
KNOWN = FAMILIES | dict.fromkeys(DENSE, mixture)
EXPERTS = "a mixture of experts is counted from its config.json, if it is one of "
EXPERTS += ", ".join(DENSE)

Source = str | Path | Mapping[str, Any] | Sequence[Any] | Architecture


def architecture(source: Source) -> Architecture:
    """The shapes of a preset, a ``config.json`` (path, folder or dict), or a list of shapes.

    A shape is (in, out) or (name, in, out). Raises ``ValueError`` for an unknown name (with the
    nearest presets), a config that lacks a key (with the key), an unknown family, and sizes that
    are not positive whole numbers.

    >>> architecture("llama-3-8b").parameters
    8030261248
    """
    if isinstance(source, Architecture):
        return source
    if isinstance(source, Mapping):
        return from_config(source, str(source.get("model_type", "config")))
    if isinstance(source, str) and source in presets():
        return from_config(presets()[source], source)
    if isinstance(source, str | Path):
        return from_path(source)
    if not isinstance(source, Sequence):
        raise TypeError(
            "expected a preset's name, a config.json (path, folder, dict) or a list of shapes, got "
            f"a {type(source).__name__}; of a model in memory: its folder, model.name_or_path"
        )
    return from_shapes(source)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Every preset's config by its name, ours (``base``) first.

    >>> presets()["llama-3-8b"]["num_hidden_layers"]
    32
    """
    ours = LEDGER.parent / "model" / "base" / "config.json"
    known = json.loads((LEDGER / "presets.json").read_text(encoding="utf-8"))
    return {"base": json.loads(ours.read_text(encoding="utf-8")), **known}


def from_path(source: str | Path) -> Architecture:
    """The architecture of a ``config.json`` or of the folder that holds one."""
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(not_a_source(source, path))
    folder = file.resolve().parent.name
    name = folder if folder and file.name == "config.json" else path.stem
    return from_config(read_json(file), name)


def not_a_source(source: str | Path, path: Path) -> str:
    """The error for a word that is neither a preset nor a path, with the nearest presets."""
    word = str(source).lower()
    near = nearest(word, presets(), most=3, cutoff=0.4)
    fix = (
        f"nearest presets: {', '.join(near)}"
        if near
        else "`minilora plan --list` names the presets"
    )
    reason = ""
    if path.is_dir():
        reason = "the folder holds none; "
    elif path.suffix == ".json":
        reason = "there is no such file; "
    experts = f" ({EXPERTS})" if re.search(r"\dx\d|moe|mixtral", word) else ""
    return f"{str(source)!r} is neither a preset nor a config.json; {reason}{fix}{experts}"


def from_shapes(shapes: Sequence[Any]) -> Architecture:
    """Plain Linears: (in, out) or (name, in, out) each."""
    linears = []
    for index, shape in enumerate(shapes):
        if not isinstance(shape, tuple | list) or len(shape) not in (2, 3):
            raise ValueError(f"a shape is (in, out) or (name, in, out), got {shape!r}")
        name, size_in, size_out = shape if len(shape) == 3 else (f"linear.{index}", *shape)
        name, sizes = str(name), {"in": size_in, "out": size_out}
        linears.append(LinearShape(name, whole(sizes, "in", name), whole(sizes, "out", name)))
    if not linears:
        raise ValueError("an empty list of shapes costs nothing: give at least one (in, out)")
    return Architecture("shapes", "shapes", tuple(linears))


def from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The architecture that a ``config.json`` describes."""
    family = config.get("model_type")
    if family not in tuple(KNOWN):
        has_experts = any("experts" in key for key in config)
        hint = EXPERTS if has_experts else "minilora.ledger.plan takes a list of shapes too"
        known = ", ".join(sorted(KNOWN))
        raise ValueError(f"{name}: model_type is {family!r}, expected one of {known}; {hint}")
    return KNOWN[family](config, name)
