"""Save a model's adapters for PEFT, and load PEFT's: strictly.

A folder written here opens in PEFT, and the other way round (formats/peft_files.py has the format). PEFT is lenient where a user would
rather know: with wrong keys it loads nothing and warns once, so the base is served as if it were the fine-tune
(huggingface/peft #2699). Here everything that does not fit is named in one error, and the model stays as it was.

The config says which modules have an adapter, the tensors hold them, and the two must agree with each other and with the model.
A pattern from a file that might take for ever to match is not tried; then the tensors alone say which modules are meant.

Left out so far: DoRA, trained biases, ``modules_to_save``; a file that needs one of them is refused by name.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.config import LoraConfig, scaling_of
from ..lora.injection import check_container, inject, lora_layers, require_lora
from ..lora.layer import LoRALayer, is_conv1d, linear_shape
from ..lora.selection import fits_pattern, matching_pattern, rank_and_alpha
from ..text import listed
from .base_fingerprint import fingerprint
from .peft_files import (
    META_BASE,
    PREFIX,
    AdapterFiles,
    lora_config,
    metadata_object,
    names_its_targets,
    read_adapter_files,
    write_adapter_files,
)

ENDS = (".lora_A.weight", ".lora_B.weight")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write a model's adapters as PEFT's two files; nothing of the base goes with them but its fingerprint.

    Killed at any moment, it leaves the old adapter or the new one (formats/peft_files.py). Raises ``ValueError`` without adapters,
    when they differ in dropout or in the kind of scaling, or hold values that are not finite, and ``OSError`` when the folder
    cannot be written.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in save_adapter(model, folder).iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    layers = require_lora(model)
    check_container(model)
    shared = {(layer.lora_dropout, layer.use_rslora) for _, layer in layers}
    if len(shared) > 1:
        raise ValueError(
            f"adapters of different (dropout, rslora) in one model cannot be saved as one: {sorted(shared)}"
        )
    tensors = adapter_tensors(layers)
    if bad := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"{bad[0].removeprefix(PREFIX)} holds values that are not finite: the training diverged"
        )
    lora_dropout, use_rslora = next(iter(shared))
    names = [name for name, _ in layers]
    r, rank_pattern = common_and_others({name: layer.r for name, layer in layers})
    lora_alpha, alpha_pattern = common_and_others(
        {name: layer.lora_alpha for name, layer in layers}
    )
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type(model),
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "use_rslora": use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": any(is_conv1d(layer.base) for _, layer in layers),
        "target_modules": short_names(model, names),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }
    write_adapter_files(Path(folder), config, tensors, asdict(fingerprint(model)))
    return Path(folder)


def load_adapter(model: nn.Module, folder: str | Path, *, strict: bool = False) -> nn.Module:
    """Put a saved adapter into a model, injecting first if it has none; returns the model.

    Raises one ``ValueError`` that names everything that does not fit (missing and unknown tensors, shapes, values that
    are not finite, unsupported features, a base without such modules); the model is then as it was.

    An adapter made for another base (a formats/base_fingerprint.py that differs) fits no worse by its shapes, so this only warns: a base
    in four bits and a resized vocabulary are other bases too. ``strict=True`` refuses it, and files that do not say.

    >>> import copy, tempfile
    >>> base = nn.Sequential(nn.Linear(4, 2))
    >>> trained = copy.deepcopy(base)
    >>> _ = inject(trained, LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_adapter(base, save_adapter(trained, folder))[0]
    LoRALayer(4 -> 2, r=1, scaling=16)
    """
    files = read_adapter_files(Path(folder))
    config, wrong = lora_config(files.config)
    layers = dict(lora_layers(model))
    names, strange = adapted_names(files.tensors)
    wrong += strange
    if config is not None:
        wrong += disagreements(model, names, files, config, layers)
        wrong += misfits(model, names, files.tensors, config, layers)
    other = other_base(model, files)
    if other and (strict or (wrong and META_BASE in files.metadata)):
        wrong.insert(0, other)  # it explains the rest
    if wrong or config is None:
        raise ValueError(
            f"the adapter in {folder} does not fit this model: {listed(wrong, 8)}. Nothing was changed"
        )
    if other and META_BASE in files.metadata:
        warnings.warn(
            f"the adapter in {folder} {other}: compare its answers before you rely on them",
            stacklevel=2,
        )
    if not layers:
        inject(model, exactly(names, config))
        layers = dict(lora_layers(model))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A.copy_(files.tensors[f"{PREFIX}{name}.lora_A.weight"])
            layer.lora_B.copy_(files.tensors[f"{PREFIX}{name}.lora_B.weight"])
    return model


def task_type(model: nn.Module) -> str | None:
    """PEFT's word for what the model does; with one, PEFT asks for ``generate``."""
    if not hasattr(model, "generate"):
        return None
    return (
        "SEQ_2_SEQ_LM"
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        else "CAUSAL_LM"
    )


def adapter_tensors(layers: list[tuple[str, LoRALayer]]) -> dict[str, Tensor]:
    """A and B of every layer under PEFT's keys."""
    tensors = {}
    for name, layer in layers:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
    return tensors


def short_names(model: nn.Module, names: list[str]) -> list[str] | str:
    """Last parts of the names if they mean just these modules in this model, else the whole names.

    A whole name that is also the end of another path would mean both; then one regular expression says it.
    """
    inside = tuple(f"{name}." for name in names)
    paths = [name for name, _ in model.named_modules() if not name.startswith(inside)]
    for entries in (sorted({name.rpartition(".")[2] for name in names}), sorted(names)):
        ends = tuple(f".{entry}" for entry in entries)
        if {path for path in paths if path in entries or path.endswith(ends)} == set(names):
            return entries
    return "|".join(map(re.escape, sorted(names)))


def common_and_others(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and a PEFT pattern for the modules that have another.

    >>> common_and_others({"0.q": 8, "0.k": 4, "1.q": 8, "1.k": 4, "2.q": 2, "3.q": 8})
    (8, {'k': 4, '^2\\\\.q': 2})
    """
    common = mode(values.values())
    by_end = defaultdict(set)
    for name, value in values.items():
        by_end[name.rpartition(".")[2]].add(value)
    pattern = {}
    for name, value in values.items():
        if value != common:
            end = name.rpartition(".")[2]
            # ^: not the end of another path
            key = re.escape(end) if len(by_end[end]) == 1 else f"^{re.escape(name)}"
            pattern[key] = value
    return common, pattern


def adapted_names(tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Paths of the Linears that the file has tensors for, and what is wrong with its keys."""
    strange = [key for key in tensors if not (key.startswith(PREFIX) and key.endswith(ENDS))]
    wrong = []
    if strange:
        wrong.append(
            f"unknown tensors {listed(strange, 5, ', ')}, needed {PREFIX}<module>.lora_A.weight and .lora_B.weight"
        )
    if not tensors:
        wrong.append("the file holds no tensors")
    return list(
        dict.fromkeys(
            key.removeprefix(PREFIX).rsplit(".", 2)[0] for key in tensors if key not in strange
        )
    ), wrong


def disagreements(
    model: nn.Module,
    names: list[str],
    files: AdapterFiles,
    config: LoraConfig,
    layers: Mapping[str, LoRALayer],
) -> list[str]:
    """Where the config names other modules of this model than the file has tensors for."""
    if not names_its_targets(files.config, config):
        return []
    inside = tuple(f"{name}." for name in layers)
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and not name.startswith(inside)
    }
    modules |= {name: layer.base for name, layer in layers.items()}
    meant = {
        name
        for name, module in modules.items()
        if matching_pattern(name, module, model, config) is not None
    }
    wrong = [
        f"{name} is a target of its config, but has no tensors in the file"
        for name in sorted(meant - set(names))
    ]
    return wrong + [
        f"{name} has tensors, but is no target of its config"
        for name in names
        if name in modules.keys() - meant
    ]


def misfits(
    model: nn.Module,
    names: list[str],
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    layers: Mapping[str, LoRALayer],
) -> list[str]:
    """Everything about the tensors that does not fit the model, or the adapters that it has already."""
    modules = dict(model.named_modules()) | {name: layer.base for name, layer in layers.items()}
    wrong = [
        f"{name} has an adapter here but not in the file" for name in layers if name not in names
    ]
    for name in names:
        r, lora_alpha = rank_and_alpha(name, config)
        layer, scaling = layers.get(name), scaling_of(r, lora_alpha, config.use_rslora)
        if layers and layer is None:
            wrong.append(f"{name} is in the file, but has no adapter here")
        elif name not in modules:
            wrong.append(f"the base has no module {name}")
        elif layer is not None and (layer.merged or (layer.r, layer.scaling) != (r, scaling)):
            here = f"r={layer.r}, scaling={layer.scaling:g}{', merged' * layer.merged}"
            wrong.append(f"{name} has {here} here; the file r={r}, scaling={scaling:g}")
        else:
            wrong += misshapen(name, modules[name], r, tensors)
    return wrong


def misshapen(name: str, module: nn.Module, r: int, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with one module's two tensors."""
    try:
        in_features, out_features = linear_shape(module)
    except TypeError:
        return [f"{name} is a {type(module).__name__} here, no Linear"]
    wrong = []
    for factor, shape in (("lora_A", (r, in_features)), ("lora_B", (out_features, r))):
        tensor = tensors.get(f"{PREFIX}{name}.{factor}.weight")
        if tensor is None:
            wrong.append(f"{name}.{factor} is missing")
        elif tuple(tensor.shape) != shape:
            wrong.append(f"{name}.{factor} has shape {tuple(tensor.shape)}, needed {shape}")
        elif tensor.dtype not in FLOATS:
            wrong.append(
                f"{name}.{factor} holds {tensor.dtype}, needed a floating-point dtype of 16 to 64 bits"
            )
        elif not torch.isfinite(tensor.float()).all():  # as float32, which is what A and B are
            wrong.append(f"{name}.{factor} holds values that are not finite")
    return wrong


def other_base(model: nn.Module, files: AdapterFiles) -> str:
    """How this model's base differs from the one that the adapter was saved with; empty when it does not."""
    said = metadata_object(files.metadata, META_BASE)
    if said is None:
        return "does not say which base it was made for"
    here = asdict(fingerprint(model))
    if said.get("architecture") != here["architecture"]:
        return "was made for a base of another architecture (other parameters, or other shapes)"
    if here["tensors"] and said.get("tensors") and said.get("tensors") != here["tensors"]:
        return "was made for a base with other values (another model of this shape, or one quantized or rounded otherwise)"
    return ""


def exactly(names: list[str], config: LoraConfig) -> LoraConfig:
    """The config that adapts just these modules, each with the rank and alpha that the given one has for it."""

    def used(pattern: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in pattern.items()
            if any(fits_pattern(n, key) or n == key for n in names)
        }

    return replace(
        config,
        target_modules="|".join(map(re.escape, names)),
        exclude_modules=(),
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern=used(config.rank_pattern),
        alpha_pattern=used(config.alpha_pattern),
    )
