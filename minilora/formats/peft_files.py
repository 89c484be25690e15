"""PEFT's files in one folder: written so that they always belong together, and read.

    README.md                    a model card, for people and hubs
    adapter_config.json          r, lora_alpha, target_modules, …
    adapter_model.safetensors    base_model.model.<path of the Linear>.lora_A.weight    (r, in)
                                 base_model.model.<path of the Linear>.lora_B.weight    (out, r)
                                 base_model.model.<embedding>.lora_embedding_A, _B
                                 and what else was trained (beside.py)

Two files cannot be renamed in one step, and new tensors beside an old config would be an adapter of
the wrong scale that nobody notices. So the tensors' metadata holds a copy of their config, and a
save goes through these states, in which a kill may leave it:

    config   tensors   PEFT reads    minilora reads
    old      old       the old       the old
    aside    old       no config     the old, with the config in the metadata or the one set aside
    aside    new       no config     the new, with the config in the metadata
    new      new       the new       the new

When both configs are equal, as in a run that saves again and again, the config stays where it is,
and the rename of the tensors is the whole change, for PEFT too. ``load_adapter`` then
``save_adapter`` repairs a folder in which PEFT finds no config. A reader looks at the config before
and after the tensors, so it gets one whole adapter even while a save is going on.

Left out: power cuts (nothing is forced to the disk), two processes that save to one folder at the
same time. A killed save may leave a hidden temporary file behind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..files import json_object, json_text, read_json, text_writer, write_together
from ..lora.config import LoraConfig
from ..lora.hyperparameters import STARTS
from ..tensor_files import read_tensors_and_metadata
from .model_card import CARD, Sections, is_ours, model_card

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
ASIDE = f"{CONFIG}.before"
META_CONFIG, META_BASE = "minilora_config", "minilora_base"
# Features that change what the tensors mean, and the value at which they change nothing.
UNSUPPORTED = {
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "ensure_weight_tying": False,
    "megatron_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
LOFTQ = {"loftq_bits": 4, "loftq_iter": 1}  # of PEFT's, what leaves the base as NF4 rounds it
PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class AdapterFiles:
    """A folder's content: the config as in its JSON, tensors by PEFT's keys, and their metadata."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_adapter_files(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    base: Mapping[str, str],
    sections: Sections | None = None,
) -> None:
    """Write both files through the states above, and the model card (model_card.py) after them.

    ``base`` is a fingerprint for the metadata, empty where none is known. Equal adapters are equal
    bytes. Raises ``ValueError`` for values that are not finite.
    """
    if bad := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        name = bad[0].removeprefix(PREFIX)
        why = "the training diverged, or a sum overflowed"
        raise ValueError(f"{name} holds values that are not finite: {why}")
    text = json_text(config)
    metadata = {META_CONFIG: json.dumps(config)}
    metadata |= {META_BASE: json.dumps(dict(base))} if base else {}
    content = packed(tensors, {"format": "pt", **metadata})
    try:
        same = (folder / CONFIG).read_bytes() == text.encode()
    except OSError:  # none yet, or an unreadable one: if the write fails too, it says why
        same = False
    files: dict[str, Callable[[Path], None]]
    files = {TENSORS: partial(write_bytes, content), CONFIG: text_writer(text)}
    stale = []
    if is_ours(folder):  # out of the way first: after a kill there is no card of another adapter
        files[CARD], stale = text_writer(model_card(config, base, sections)), [CARD]
    write_together(folder, files, remove=stale, aside=None if same else (CONFIG, ASIDE))
    (folder / ASIDE).unlink(missing_ok=True)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file."""
    path.write_bytes(content)


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Read both files as of one save. Raises ``ValueError`` when one is missing or damaged."""
    if not os.path.exists(folder / TENSORS) and os.path.exists(folder / "adapter" / TENSORS):
        raise ValueError(f"{folder} holds no {TENSORS}: did you mean {folder / 'adapter'}?")
    for _ in range(20):
        content, version = config_version(folder)
        tensors, metadata = read_tensors_and_metadata(folder / TENSORS)
        if config_version(folder)[1] == version:
            return AdapterFiles(folder, config_of(folder, content, metadata), tensors, metadata)
    raise ValueError(f"{folder} keeps changing: load the adapter when nothing writes to it")


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its header's keys sorted: 8 bytes of length, the header, the data.

    The library writes the metadata's keys in random order (safetensors #584), so that two equal
    saves would differ.

    >>> import torch
    >>> one = packed({"w": torch.ones(2)}, {"b": "1", "a": "2"})
    >>> one == packed({"w": torch.ones(2)}, {"a": "2", "b": "1"}), load(one)["w"].tolist()
    (True, [1.0, 1.0])
    """
    content = save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, dict(metadata)
    )
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data begins at a multiple of 8, as the format asks
    return len(header).to_bytes(8, "little") + header + content[end:]


def unpacked(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of such a file's bytes.

    >>> import torch
    >>> unpacked(packed({"w": torch.ones(2)}, {"a": "2"}))[1]
    {'a': '2'}
    """
    end = 8 + int.from_bytes(content[:8], "little")
    return load(content), json.loads(content[8:end]).get("__metadata__", {})


def config_version(folder: Path) -> tuple[bytes | None, tuple[int, int] | None]:
    """The config file's content and a mark that every save changes; None twice without a file."""
    try:
        with (folder / CONFIG).open("rb") as file:
            status = os.fstat(file.fileno())
            return file.read(), (status.st_ino, status.st_mtime_ns)
    except FileNotFoundError:
        return None, None
    except NotADirectoryError:
        raise ValueError(f"{folder} is a file: expected an adapter's folder") from None
    except OSError as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {error}") from error


def config_of(folder: Path, content: bytes | None, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The config file; after a killed save, the copy in the metadata or the file set aside."""
    if content is not None:
        return json_object(content, folder / CONFIG)
    if (copy := metadata_object(metadata, META_CONFIG)) is not None:
        return copy
    return read_json(folder / (ASIDE if (folder / ASIDE).exists() else CONFIG))


def metadata_object(metadata: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """A JSON object from the metadata; None where there is none, as in PEFT's own files."""
    try:
        value = json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lora_config(
    saved: Mapping[str, Any], sees_base: bool = False
) -> tuple[LoraConfig | None, list[str]]:
    """PEFT's config as ours (None where that fails), and everything that is wrong with it.

    ``sees_base``: whether the caller holds LoftQ's A and B against the base that they are beside.
    """
    wrong = []
    if saved.get("peft_type") != "LORA":
        wrong.append(f"peft_type is {saved.get('peft_type')!r}, expected 'LORA'")
    for name, neutral in UNSUPPORTED.items():
        if (value := saved.get(name, neutral)) not in (neutral, None, {}, [], ()):
            wrong.append(f"{name}={value!r} is not supported")
    init = saved.get("init_lora_weights", "")
    rounds = saved.get("loftq_config") or {}
    one_round = init == "loftq" and isinstance(rounds, dict) and {**LOFTQ, **rounds} == LOFTQ
    known = init in STARTS or (one_round and sees_base)
    if not known and any(word in str(init).lower() for word in CHANGES_BASE):
        fix = "convert it to plain LoRA with PEFT first"
        wrong.append(f"init_lora_weights={init!r} changes the base: {fix}")
    patterns = [saved.get(name) for name in PATTERNS]
    keys = [key for pattern in patterns if isinstance(pattern, dict) for key in pattern]
    if wild := [key for key in keys if not is_tame(key)]:
        wrong += [f"the pattern {key!r} could take forever to match" for key in wild]
        return None, wrong
    defaults = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False}
    fields = {name: saved.get(name, value) for name, value in defaults.items()}
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern", *PATTERNS):
        fields[name] = saved.get(name)
    fields["use_dora"] = saved.get("use_dora") or False
    fields["init_lora_weights"] = init if init in STARTS else True
    fields["bias"] = saved.get("bias") or "none"
    fields["task_type"] = saved.get("task_type")
    for name in ("modules_to_save", "trainable_token_indices"):
        fields[name] = saved.get(name) or ()
    fields["target_modules"] = saved.get("target_modules") or "none are named"
    try:
        return LoraConfig(**fields), wrong
    except (TypeError, ValueError) as error:
        return None, [*wrong, str(error)]


def names_its_targets(saved: Mapping[str, Any], config: LoraConfig) -> bool:
    """Whether the config names its target modules, in patterns that are safe to try unread."""
    regexes = [p for p in (config.target_modules, config.exclude_modules) if isinstance(p, str)]
    regexes += config.layers_pattern or ()
    return bool(saved.get("target_modules")) and all(map(is_tame, regexes))


def is_tame(pattern: str) -> bool:
    r"""Whether a regular expression ends soon on every path; a hostile one can run for years.

    Tame means no repeated group (``(a+)+`` tries every way to share the letters out), and few ways
    through the rest. A path of 60 letters has about 2⁶ places where a repeat may end, ``x?``
    doubles the ways, a group of n alternatives multiplies them by n. At most 2⁸ ways may come from
    choices, and 2²⁶ in all. A ``|`` outside of groups only adds. Lookarounds and the like count as
    not tame.

    >>> is_tame(r".*layers\.\d+\.(q|v)_proj"), is_tame("(.|a)" * 9)
    (True, False)
    >>> is_tame(r"(\w+\.?)+!"), is_tame(".*.*.*.*.*!")
    (False, False)
    """
    # an escape counts as one letter, and so does a set
    plain = re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", pattern, flags=re.DOTALL)
    if len(pattern) > 2000 or re.search(r"\)[*+{]|\(\?[^:]", plain):
        return False
    repeats = len(re.findall(r"[*+{]", plain))
    ways = 2 ** len(re.findall(r"(?<![(*+}?])\?", plain))  # of each optional letter, two
    alternatives: list[int] = []  # of each group that is open
    for letter in plain:
        if letter == "(":
            alternatives.append(1)
        elif alternatives and letter == "|":
            alternatives[-1] += 1
        elif alternatives and letter == ")":
            ways *= alternatives.pop()
    return ways <= 2**8 and 2 ** (6 * repeats) * ways <= 2**26
