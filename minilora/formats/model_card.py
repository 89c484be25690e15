"""The model card beside an adapter: what it is, what it was made on and from, in which versions.

``README.md`` with YAML in front, in the form that PEFT writes and model hubs read: ``base_model``,
``library_name: peft``, ``pipeline_tag``, ``tags``. Below it, for people: the settings, the base's
fingerprint, and what the caller knows (data and its hash, training, scores).

There is no date in it and no path but the base's name, so two equal runs write equal cards. A card
that somebody else wrote is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CARD = "README.md"
MARK = "<!-- written by minilora; without this line it is kept as it is -->"
VERSIONS = {"minilora": "minilora", "PyTorch": "torch", "safetensors": "safetensors"}
PIPELINES = {"CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text2text-generation"}
PEFTS = {  # what PEFT opens
    **{"LORA": "LoRA", "VERA": "VeRA", "IA3": "(IA)³", "ADALORA": "AdaLoRA"},
    **{"LN_TUNING": "norm tuning", "PROMPT_TUNING": "prompt tuning"},
    **{"PREFIX_TUNING": "prefix tuning"},
}
METHODS = PEFTS | {"BITFIT": "BitFit", "BOTTLENECK": "bottleneck"}
SHOWN = ("peft_type", "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules")
Sections = Mapping[str, Mapping[str, Any]]


def model_card(
    config: Mapping[str, Any], base: Mapping[str, str], sections: Sections | None = None
) -> str:
    """The text of a card.

    ``config`` is PEFT's ``adapter_config.json``, ``base`` a fingerprint, ``sections`` more to say,
    by heading: ``{"Scores": {"exact match": 0.97}}``.

    >>> print(model_card({"base_model_name_or_path": "base", "r": 8}, {})[:54])
    ---
    base_model: "base"
    library_name: peft
    tags:
    - lora
    """
    name = config.get("base_model_name_or_path")
    front = [f"base_model: {json.dumps(name, ensure_ascii=False)}"] if name else []
    kind = str(config.get("peft_type", "LORA"))
    front += [f"library_name: {'peft' if kind in PEFTS else 'minilora'}"]
    if pipeline := PIPELINES.get(str(config.get("task_type"))):
        front += [f"pipeline_tag: {pipeline}"]
    front += ["tags:", f"- {kind.lower()}", "- minilora"]
    settings = {key: config[key] for key in (*SHOWN, *patterns(config)) if key in config}
    known = {key: value for key, value in base.items() if value}
    about = [
        f"# {article(METHODS.get(kind, kind))} adapter{f' for {Path(name).name}' if name else ''}",
        "It is no model by itself: load it onto its base with "
        + "PEFT (`PeftModel.from_pretrained(base, folder)`) or " * (kind in PEFTS)
        + "`minilora.load_adapter(base, folder)`.",
        *section("Adapter", settings),
        *section("Base, fingerprint", known),
    ]
    for heading, rows in (sections or {}).items():
        about += section(heading, rows)
    about += section("Framework versions", versions(), "###")
    text = "\n\n".join([*about, MARK])
    return "\n".join(["---", *front, "---", "", text, ""])


def article(name: str) -> str:
    """A method's name with its article."""
    return f"An {name}" if name[0] in "AEIOU(" else f"A {name}"


def patterns(config: Mapping[str, Any]) -> list[str]:
    """The patterns of a config that are not empty."""
    return [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]


def section(heading: str, rows: Mapping[str, Any], level: str = "##") -> list[str]:
    """A heading and a list of its rows; nothing without rows."""
    if not rows:
        return []
    return [f"{level} {heading}", "\n".join(f"- {name}: {shown(rows[name])}" for name in rows)]


def shown(value: Any) -> str:
    """A value in a line of text."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def versions() -> dict[str, str]:
    """The versions of what wrote the adapter, as far as they are installed as packages."""
    installed = {}
    for title, package in VERSIONS.items():
        try:
            installed[title] = version(package)
        except PackageNotFoundError:  # a checkout on the path
            continue
    return installed


def is_ours(folder: Path) -> bool:
    """Whether a folder has no card, or one that a save may write anew."""
    file = folder / CARD
    try:
        return not file.exists() or MARK in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # another's
        return False
