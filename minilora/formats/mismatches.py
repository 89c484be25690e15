"""Where an adapter's files and a model do not fit each other: every mismatch, in words.

The config says which modules have an adapter, the tensors hold them, and both must agree with each
other and with the model. A pattern from a file that might take forever to match is not tried; then
the tensors alone say which modules are meant.

``check_fit`` names them all in one error; the other functions return their findings instead of
raising.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..lora.config import LoraConfig
from ..lora.hyperparameters import scaling_of
from ..lora.layer import LoRALayer, lora_layers
from ..lora.linears import linear_shape
from ..lora.paths import named_modules
from ..lora.selection import Site, pattern_for
from ..lora.sites import sites_of
from ..text import listed
from .base_fingerprint import Fingerprint, fingerprint
from .peft_files import (
    META_BASE,
    PREFIX,
    AdapterFiles,
    lora_config,
    metadata_object,
    names_its_targets,
)

ENDS = (".lora_A.weight", ".lora_B.weight")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Fitting(NamedTuple):
    """An adapter that fits a model: its files, its config, the paths that it adapts.

    ``other_base`` says how its base differs from the model; empty if it does not.
    """

    files: AdapterFiles
    config: LoraConfig
    names: list[str]
    other_base: str


def check_fit(
    model: nn.Module,
    files: AdapterFiles,
    strict: bool = False,
    base: Callable[[], Fingerprint] | None = None,
) -> Fitting:
    """Raise one ``ValueError`` that names everything about a folder's content that does not fit.

    ``base``: the model's fingerprint, where the caller has it already.
    """
    config, wrong = lora_config(files.config)
    layers = dict(lora_layers(model))
    names, wrong_keys = adapted_names(files.tensors)
    wrong += wrong_keys
    if config is not None:
        wrong += disagreements(model, names, files, config, layers)
        wrong += misfits(model, names, files.tensors, config, layers)
    other = other_base(base or partial(fingerprint, model), files)
    if other and (strict or (wrong and META_BASE in files.metadata)):
        wrong.insert(0, other)  # it explains the rest
    if wrong or config is None:
        reasons = listed(wrong, 8)
        raise ValueError(
            f"the adapter in {files.folder} does not fit this model: {reasons}. Nothing was changed"
        )
    return Fitting(files, config, names, other)


def adapted_names(tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Paths of the Linears that the file has tensors for, and what is wrong with its keys."""
    strange = [key for key in tensors if not (key.startswith(PREFIX) and key.endswith(ENDS))]
    wrong = []
    if strange:
        expected = f"{PREFIX}<module>.lora_A.weight and .lora_B.weight"
        wrong.append(f"unknown tensors {listed(strange, 5, ', ')}, expected {expected}")
    if not tensors:
        wrong.append("the file holds no tensors")
    keys = [key for key in tensors if key not in strange]
    return list(dict.fromkeys(key.removeprefix(PREFIX).rsplit(".", 2)[0] for key in keys)), wrong


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
    sites = {site.path: site for site in sites_of(model) if not site.path.startswith(inside)}
    sites |= {n: Site(n, layer.in_features, layer.out_features) for n, layer in layers.items()}
    targets = {name for name, site in sites.items() if pattern_for(site, config) is not None}
    wrong = [
        f"{name} is a target of its config, but has no tensors in the file"
        for name in sorted(targets - set(names))
    ]
    no_targets = sites.keys() - targets
    return wrong + [
        f"{name} has tensors, but is not a target of its config"
        for name in names
        if name in no_targets
    ]


def misfits(
    model: nn.Module,
    names: list[str],
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    layers: Mapping[str, LoRALayer],
) -> list[str]:
    """Everything about the tensors that does not fit the model, or the adapters that it has."""
    modules = dict(named_modules(model)) | {name: layer.base for name, layer in layers.items()}
    missing = [name for name in layers if name not in names]
    wrong = [f"{name} has an adapter in this model but not in the file" for name in missing]
    for name in names:
        r, lora_alpha = config.rank_and_alpha(name)
        layer, scaling = layers.get(name), scaling_of(r, lora_alpha, config.use_rslora)
        if layers and layer is None:
            wrong.append(f"{name} is in the file, but has no adapter in this model")
        elif name not in modules:
            wrong.append(f"the base has no module {name}")
        elif layer is not None and (layer.merged or (layer.r, layer.scaling) != (r, scaling)):
            ours = f"r={layer.r}, scaling={layer.scaling:g}{', merged' * layer.merged}"
            wrong.append(f"{name} has {ours} in this model, r={r}, scaling={scaling:g} in the file")
        else:
            wrong += misshapen(name, modules[name], r, tensors)
    return wrong


def misshapen(name: str, module: nn.Module, r: int, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with one module's two tensors."""
    try:
        in_features, out_features = linear_shape(module)
    except TypeError:
        return [f"{name} is a {type(module).__name__} in this model, not a Linear"]
    wrong = []
    for factor, shape in (("lora_A", (r, in_features)), ("lora_B", (out_features, r))):
        tensor = tensors.get(f"{PREFIX}{name}.{factor}.weight")
        if tensor is None:
            wrong.append(f"{name}.{factor} is missing")
        elif tuple(tensor.shape) != shape:
            wrong.append(f"{name}.{factor} has shape {tuple(tensor.shape)}, expected {shape}")
        elif tensor.dtype not in FLOATS:
            expected = "expected a floating-point dtype of 16 to 64 bits"
            wrong.append(f"{name}.{factor} holds {tensor.dtype}, {expected}")
        elif not torch.isfinite(tensor.float()).all():  # as float32, which is what A and B are
            wrong.append(f"{name}.{factor} holds values that are not finite")
    return wrong


def other_base(base: Callable[[], Fingerprint], files: AdapterFiles) -> str:
    """How this base differs from the one that the adapter was saved with; empty if it does not."""
    saved = metadata_object(files.metadata, META_BASE)
    if saved is None:
        return "does not say which base it was made for"
    ours = asdict(base())
    if saved.get("architecture") != ours["architecture"]:
        return "was made for a base of another architecture (other parameters, or other shapes)"
    if ours["tensors"] and saved.get("tensors") and saved.get("tensors") != ours["tensors"]:
        return (
            "was made for a base with other values "
            "(another model of this shape, or one quantized or rounded otherwise)"
        )
    return ""
