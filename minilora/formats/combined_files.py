"""Adapter folders as factors, without their base; several folders as one.

    folder  ->  {path: (A, B, scaling)}  ->  lora/combining.py  ->  folder

A combination has the scaling 1, so the new config says α = r, module by module, and no rsLoRA.
PEFT 0.21.2 keeps that flag in ``add_weighted_adapter``, and its result is √r too strong
(huggingface/peft #3761).

Left out: what the strict reader refuses anyway (DoRA, biases: formats/peft_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lora.combining import LowRank, combine
from ..lora.config import LoraConfig
from ..lora.hyperparameters import scaling_of
from ..text import listed
from .factors import adapted_paths
from .mismatches import beyond_linears, strange_keys
from .peft_files import (
    FLOATS,
    META_BASE,
    PREFIX,
    AdapterFiles,
    lora_config,
    metadata_object,
    read_adapter_files,
    write_adapter_files,
)
from .save_and_load import common_and_others

# what narrows the targets of a config, which then do not say by themselves which modules they mean
NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")


def load_low_rank(folder: str | Path) -> dict[str, LowRank]:
    """The factors in an adapter's folder, by module path; no base is needed.

    Raises ``ValueError`` with everything that is wrong with the files in themselves; whether they
    fit a model, ``load_adapter`` says.

    >>> import tempfile
    >>> from minilora import LoraConfig, inject, save_adapter
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_low_rank(save_adapter(model, folder))["0"].scaling
    16.0
    """
    return parts_of(read_adapter_files(Path(folder)))


def combine_folders(
    folders: Sequence[str | Path],
    out: str | Path,
    weights: Sequence[float] | None = None,
    how: str = "cat",
    **settings: Any,
) -> Path:
    """``combine`` from folders into a folder, which opens here and in PEFT; returns ``out``.

    The arguments are those of ``combine``. The folders must be of one base, by their fingerprints
    where they have them. Raises ``ValueError`` as ``load_low_rank`` and ``combine``, on adapters of
    different bases, and when ``out`` is one of the folders; nothing is written then.

    >>> import tempfile
    >>> from minilora import LoraConfig, inject, save_adapter
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one = save_adapter(model, f"{folder}/one")
    ...     both = combine_folders([one, one], f"{folder}/both", weights=[0.5, 0.5])
    ...     load_low_rank(both)["0"].A.shape
    torch.Size([2, 4])
    """
    if any(Path(folder).resolve() == Path(out).resolve() for folder in folders):
        raise ValueError(f"{out} is one of the adapters to combine: choose another folder")
    files = [read_adapter_files(Path(folder)) for folder in folders]
    parts = combine([parts_of(each) for each in files], weights, how, **settings)
    base = common_base(files)
    tensors = {}
    for name, part in parts.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = part.A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = part.B
    write_adapter_files(Path(out), config_for(parts, files), tensors, base)
    return Path(out)


def parts_of(files: AdapterFiles) -> dict[str, LowRank]:
    """The factors of one adapter's files; one error names all that is wrong."""
    config, wrong = lora_config(files.config)
    names = adapted_paths(files.tensors)
    wrong += strange_keys(files.tensors, known=())
    wrong += [] if config is None else beyond_linears(config, files.tensors)
    parts: dict[str, LowRank] = {}
    for name in names:
        A, B = (files.tensors.get(f"{PREFIX}{name}.lora_{side}.weight") for side in "AB")
        if A is None or B is None:
            wrong.append(f"{name} has only one of its two factors")
        elif config is not None:
            wrong += problems_of(name, A, B, config)
            r, lora_alpha = config.rank_and_alpha(name)
            parts[name] = LowRank(A, B, float(scaling_of(r, lora_alpha, config.use_rslora)))
    if wrong:
        raise ValueError(f"the adapter in {files.folder} cannot be read: {listed(wrong, 8)}")
    return parts


def problems_of(name: str, A: Tensor, B: Tensor, config: LoraConfig) -> list[str]:
    """What is wrong with one module's two factors, as far as they themselves say."""
    r, _ = config.rank_and_alpha(name)
    if A.dim() != 2 or B.dim() != 2 or len(A) != r or B.shape[1] != r:
        shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
        return [f"{name} has {shapes}, expected ({r}, in) and (out, {r}) by its config"]
    if A.dtype not in FLOATS or B.dtype not in FLOATS:
        return [f"{name} holds {A.dtype} and {B.dtype}, expected floating-point dtypes"]
    if not (torch.isfinite(A.float()).all() and torch.isfinite(B.float()).all()):
        return [f"{name} holds values that are not finite"]
    return []


def common_base(files: Sequence[AdapterFiles]) -> Mapping[str, str]:
    """The fingerprint of the adapters' one base; empty where none says. ``ValueError`` on two."""
    bases = {each.folder: metadata_object(each.metadata, META_BASE) for each in files}
    known = [(folder, base) for folder, base in bases.items() if base]
    for folder, base in known[1:]:
        if base != known[0][1]:
            raise ValueError(
                f"{known[0][0]} and {folder} were made on different bases, so that their sum means "
                "nothing: combine adapters of one base"
            )
    return known[0][1] if known else {}


def config_for(parts: Mapping[str, LowRank], files: Sequence[AdapterFiles]) -> dict[str, Any]:
    """The first adapter's config with the combination's targets, ranks, and a scaling of 1."""
    config = files[0].config
    r, ranks = common_and_others({name: len(part.A) for name, part in parts.items()})
    targets = [each.config.get("target_modules") for each in files]
    alike = all(adapted_paths(each.tensors) == list(parts) for each in files)
    same = alike and all(each == targets[0] for each in targets)
    same = same and not any(each.config.get(name) for each in files for name in NARROWING)
    return {
        "peft_type": "LORA",
        "task_type": config.get("task_type"),
        "base_model_name_or_path": config.get("base_model_name_or_path"),
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "target_modules": targets[0] if same and targets[0] else sorted(parts),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
    }
