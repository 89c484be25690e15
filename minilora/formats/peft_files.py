"""PEFT's two files in one folder: how they are written so that they always belong together, and how they are read.

    adapter_config.json          r, lora_alpha, target_modules, …
    adapter_model.safetensors    base_model.model.<path of the Linear>.lora_A.weight    (r, in)
                                 base_model.model.<path of the Linear>.lora_B.weight    (out, r)

Two files cannot be renamed in one step, and new tensors beside an old config would be an adapter of the wrong scale that
nobody notices. So the tensors' metadata holds a copy of their config, and a save goes through these states:

    config   tensors       PEFT finds       here, after a kill at this point
    old      old           the old          the old
    aside    old           no config        the old: its config from the tensors' metadata, or from the file set aside
    aside    new           no config        the new: its config from the tensors' metadata
    new      new           the new          the new

When both configs are equal, as in a run that saves again and again, the config stays where it is, and the rename of the tensors
is the whole change, for PEFT too. ``load_adapter`` then ``save_adapter`` repairs a folder that PEFT finds without a config.
A reader looks at the config before and after the tensors, so a save going on meanwhile gives it one whole adapter as well.

Left out: power cuts (nothing is forced to the disk), two processes that save to one folder at the same time. A killed save may
leave a hidden temporary file behind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import (
    json_object,
    json_text,
    read_json,
    read_tensors_and_metadata,
    tensor_writer,
    text_writer,
    write_together,
)
from ..lora.config import LoraConfig

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
ASIDE = f"{CONFIG}.before"
META_CONFIG, META_BASE = "minilora_config", "minilora_base"
# Features that change what the tensors mean, and the value at which they change nothing.
UNSUPPORTED = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "ensure_weight_tying": False,
    "megatron_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterFiles:
    """What a folder holds: the config as JSON says it, the tensors by PEFT's keys, the safetensors metadata."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_adapter_files(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor], base: Mapping[str, str]
) -> None:
    """Write both files, ``base`` (a fingerprint) into the metadata, through the states above. Raises ``OSError``."""
    text = json_text(config)
    metadata = {META_CONFIG: json.dumps(config), META_BASE: json.dumps(dict(base))}
    try:
        same = (folder / CONFIG).read_bytes() == text.encode()
    # none yet, or one that cannot be read: then the write says why, if it fails too
    except OSError:
        same = False
    files = {TENSORS: tensor_writer(tensors, metadata), CONFIG: text_writer(text)}
    write_together(folder, files, aside=None if same else (CONFIG, ASIDE))
    (folder / ASIDE).unlink(missing_ok=True)


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Read both files as of one save. Raises ``ValueError`` when one is missing or damaged."""
    if not os.path.exists(folder / TENSORS) and os.path.exists(folder / "adapter" / TENSORS):
        raise ValueError(f"{folder} holds no {TENSORS}: did you mean {folder / 'adapter'}?")
    for _ in range(20):
        content, version = config_version(folder)
        tensors, metadata = read_tensors_and_metadata(folder / TENSORS)
        if config_version(folder)[1] == version:
            return AdapterFiles(folder, config_of(folder, content, metadata), tensors, metadata)
    raise ValueError(f"{folder} is written to all the time: load the adapter when that is over")


def config_version(folder: Path) -> tuple[bytes | None, tuple[int, int] | None]:
    """The config file's content and what tells it from another save's, or None twice when there is none."""
    try:
        with (folder / CONFIG).open("rb") as opened:
            about = os.fstat(opened.fileno())
            return opened.read(), (about.st_ino, about.st_mtime_ns)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {error}") from error


def config_of(folder: Path, content: bytes | None, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The config file; where a save was killed, the copy in the tensors' metadata or the file that was set aside."""
    if content is not None:
        return json_object(content, folder / CONFIG)
    if (found := metadata_object(metadata, META_CONFIG)) is not None:
        return found
    return read_json(folder / (ASIDE if (folder / ASIDE).exists() else CONFIG))


def metadata_object(metadata: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """A JSON object from the metadata; None where there is none (PEFT writes none of ours)."""
    try:
        found = json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def lora_config(found: Mapping[str, Any]) -> tuple[LoraConfig | None, list[str]]:
    """PEFT's config as ours (None where it cannot be), and everything that is wrong with it, feature by feature."""
    wrong = []
    if found.get("peft_type") != "LORA":
        wrong.append(f"peft_type is {found.get('peft_type')!r}, needed 'LORA'")
    for name, neutral in UNSUPPORTED.items():
        if (value := found.get(name, neutral)) not in (neutral, None, {}, [], ()):
            wrong.append(f"{name}={value!r} is not supported")
    if any(word in str(found.get("init_lora_weights", "")).lower() for word in CHANGES_BASE):
        wrong.append(
            f"init_lora_weights={found['init_lora_weights']!r} changes the base: convert it to plain LoRA with PEFT first"
        )
    patterns = [found.get(name) for name in ("rank_pattern", "alpha_pattern")]
    keys = [key for pattern in patterns if isinstance(pattern, dict) for key in pattern]
    if wild := [
        f"the pattern {key!r} could take for ever to match" for key in keys if not is_tame(key)
    ]:
        return None, wrong + wild
    fields = {
        "r": found.get("r", 8),
        "lora_alpha": found.get("lora_alpha", 8),
        "target_modules": found.get("target_modules") or "none are named",
        "lora_dropout": found.get("lora_dropout", 0.0),
        "use_rslora": found.get("use_rslora", False),
        "exclude_modules": found.get("exclude_modules"),
        "rank_pattern": found.get("rank_pattern"),
        "alpha_pattern": found.get("alpha_pattern"),
        "layers_to_transform": found.get("layers_to_transform"),
        "layers_pattern": found.get("layers_pattern"),
    }
    try:
        return LoraConfig(**fields), wrong
    except (TypeError, ValueError) as error:
        return None, [*wrong, str(error)]


def names_its_targets(found: Mapping[str, Any], config: LoraConfig) -> bool:
    """Whether the config says which modules there are to be, in patterns that are safe to try on a stranger's word."""
    regexes = [p for p in (config.target_modules, config.exclude_modules) if isinstance(p, str)]
    return bool(found.get("target_modules")) and all(
        map(is_tame, [*regexes, *(config.layers_pattern or ())])
    )


def is_tame(pattern: str) -> bool:
    r"""Whether a regular expression is sure to be decided soon, whatever the path; a hostile one can run for years.

    Tame: no repeated group (``(a+)+`` tries every way to share the letters out), and few ways through the rest. A path of 60
    letters has about 2⁶ places where a repeat may end, ``x?`` doubles the ways, a group of n alternatives takes n of them: at
    most 2⁸ by choices, and 2²⁶ in all. A ``|`` outside of groups only adds. Lookarounds and the like are not looked into.

    >>> is_tame(r".*layers\.\d+\.(q|v)_proj"), is_tame(r"(\w+\.?)+!"), is_tame(".*.*.*.*.*!"), is_tame("(.|a)" * 9)
    (True, False, False, False)
    """
    # an escape, and a set, is one letter
    plain = re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", pattern, flags=re.DOTALL)
    if len(pattern) > 2000 or re.search(r"\)[*+{]|\(\?[^:]", plain):
        return False
    repeats, ways = len(re.findall(r"[*+{]", plain)), 2 ** len(re.findall(r"(?<![(*+}?])\?", plain))
    alternatives: list[int] = []  # of each group that is open
    for letter in plain:
        if letter == "(":
            alternatives.append(1)
        elif alternatives and letter == "|":
            alternatives[-1] += 1
        elif alternatives and letter == ")":
            ways *= alternatives.pop()
    return ways <= 2**8 and 2 ** (6 * repeats) * ways <= 2**26
