"""The sections of a spec, and everything that can be wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..hub.semver import check_name
from ..text import did_you_mean

SECTIONS = ("base", "data", "method", "train", "replay", "evaluation")
OURS = ("out", "resume", "progress", "measure_memory", "valid_answers")  # the steps set these
FILES = {"base": ("folder",), "data": ("train", "valid"), "replay": ("source",)}
FILES["evaluation"] = ("regression",)


@dataclass(frozen=True)
class Base:
    """The model that is adapted; ``folder`` None: the shipped base."""

    folder: str | None = None
    four_bits: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Data:
    """What is learnt; without ``valid`` a ``share`` of ``train`` is held out."""

    train: str
    valid: str | None = None
    share: float = 0.1
    skip_bad: bool = False


@dataclass(frozen=True)
class Replayed:
    """Old rows beside the new ones: a ``share`` of all, from the base itself (so many ``windows``)
    or from a file.
    """

    share: float = 0.25
    source: str = "self"
    windows: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """How the adapter is judged: so many held-out ``examples``, ``prose``, and what must stay
    right. Of the last validations before the end ``checkpoints`` are kept as adapters, too.
    """

    examples: int = 100
    prose: bool = True
    regression: str | None = None
    checkpoints: int = 0


Problem = tuple[tuple[str, str], str]  # (section, key), and what is wrong there


def problems_of(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Everything that is wrong with a spec's tables."""
    if unknown := values.keys() - {"name", *SECTIONS}:
        for name in sorted(unknown):
            hint = did_you_mean(name, ["name", *SECTIONS], f"known are name, {', '.join(SECTIONS)}")
            yield ("", name), f"unknown {name!r}: {hint}"
    try:
        check_name(values["name"])
    except KeyError:
        yield ("", "name"), "name is missing: what the adapter is called in the hub"
    except (ValueError, TypeError) as error:
        yield ("", "name"), f"name: {error}"
    tables = {name: values.get(name, {}) for name in SECTIONS}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            yield ("", name), f"{name} must be a table [{name}], got {table!r:.40}"
            return
    for name, kind in {"data": Data, "base": Base, "evaluation": Evaluation}.items():
        yield from wrong_fields(name, tables[name], kind)
    if "train" not in tables["data"]:
        yield ("data", ""), "data.train is missing: the file to learn from"
    yield from wrong_fields("replay", tables["replay"], Replayed)
    if tables["replay"].get("share") == 0:
        yield ("replay", "share"), "replay.share must be above 0: leave [replay] out for none"
    yield from wrong_settings(tables["train"])
    yield from wrong_method(tables["method"])


def missing_files(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Files and folders that a spec names and that are not there."""
    for section, names in FILES.items():
        for name in names:
            path = values.get(section, {}).get(name)
            if (
                path is not None
                and (section, path) != ("replay", "self")
                and not Path(path).exists()
            ):
                yield (section, name), f"{section}.{name}: {path} does not exist"


def wrong_fields(section: str, table: Mapping[str, Any], kind: Any) -> Iterator[Problem]:
    """Keys that a section does not have, and values of another type."""
    types = {each.name: str(each.type) for each in fields(kind)}
    for key, value in table.items():
        if key not in types:
            hint = did_you_mean(key, types, f"known are {', '.join(types)}")
            yield (section, key), f"unknown {section}.{key}: {hint}"
        elif not fits(value, types[key]):
            yield (section, key), f"{section}.{key} must be {types[key]}, got {value!r:.40}"
        elif isinstance(value, int | float) and value < 0:
            yield (section, key), f"{section}.{key} must not be negative, got {value}"
        elif key == "share" and not 0 <= value < 1:
            yield (section, key), f"{section}.share must be in [0, 1), got {value}"


def fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a type as the sections above write it."""
    kind = annotation.removesuffix(" | None")
    if value is None:
        return kind != annotation
    if isinstance(value, bool):
        return kind == "bool"
    kinds: dict[str, Any] = {"str": str, "int": int, "float": int | float, "bool": bool}
    return isinstance(value, kinds[kind])


def wrong_settings(table: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings that ``TrainConfig`` refuses."""
    from ..training.config import TrainConfig

    if ours := [key for key in table if key in OURS]:
        yield ("train", ours[0]), f"train.{ours[0]} is the job's own: leave it out"
        return
    yield from refused("train", table, lambda values: TrainConfig(**{"out": "out", **values}))


def wrong_method(table: Mapping[str, Any]) -> Iterator[Problem]:
    """A kind that is unknown, and what its config refuses."""
    kind = {"kind": table["kind"]} if "kind" in table else {}
    yield from refused("method", table, lambda values: config_of({**kind, **values}))


def refused(
    section: str, table: Mapping[str, Any], make: Callable[[Mapping[str, Any]], object]
) -> Iterator[Problem]:
    """What ``make`` says of a table: of the keys that are wrong alone, else of all together."""
    try:
        make(table)
        return
    except (ValueError, TypeError) as error:
        together = str(error)
    alone = []
    for key, value in table.items():
        try:
            make({key: value})
        except (ValueError, TypeError) as error:
            alone.append(((section, key), str(error)))
    yield from alone or [((section, ""), together)]


def config_of(method: Mapping[str, Any]) -> Any:
    """The config of a ``[method]`` table. Raises ``ValueError`` or ``TypeError``."""
    from .. import methods
    from ..lora.config import LoraConfig

    settings = dict(method)
    kind = settings.pop("kind", "lora")
    variants: dict[str, dict[str, Any]] = {"dora": {"use_dora": True}}
    variants |= {start: {"init_lora_weights": start} for start in ("pissa", "olora")}
    if kind == "lora" or kind in variants:
        if "r" in settings and "lora_alpha" not in settings:
            settings["lora_alpha"] = 2 * settings["r"]
        return LoraConfig(**settings, **variants.get(kind, {}))
    kinds = {
        name.removesuffix("Config").lower(): name
        for name in methods.__all__
        if name.endswith("Config")
    }
    if kind not in kinds:
        known = ["lora", *variants, *kinds]
        raise ValueError(
            f"unknown method {kind!r}: {did_you_mean(str(kind), known, f'known are {known}')}"
        )
    return getattr(methods, kinds[kind])(**settings)


def line_of(text: str, section: str, key: str) -> str:
    """``line 7: `` where a key of a section stands in a TOML text; the section's, or nothing.

    >>> line_of('name = "naval"\\n[train]\\nlr = -1', "train", "lr")
    'line 3: '
    """
    here, heading = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if opened := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            here = opened[1]
            heading = number if here == section or (not section and here == key) else heading
        elif here == section and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f"line {number}: "
    return f"line {heading}: " if heading else ""
