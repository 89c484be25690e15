"""Where an adapter's files and a model do not fit each other: every mismatch, in words.

The config says which modules have an adapter, the tensors hold them, and both must agree with each
other and with the model. A pattern from a file that might take forever to match is not tried; then
the tensors alone say which modules are meant.

``check_fit`` names them all in one error; the other functions return their findings instead of
raising.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import adapter_layers
from ..lora.config import LoraConfig
from ..lora.hyperparameters import STARTS, scaling_of
from ..lora.layer import LoRALayer
from ..lora.linears import embedding_shape, linear_shape
from ..lora.paths import named_modules
from ..lora.selection import Site, pattern_for
from ..lora.sites import sites_of
from ..methods.dora import DoRALayer
from ..methods.pissa import ResidualLoRALayer
from ..nf4.linear import NF4Linear
from ..text import listed
from .base_fingerprint import Fingerprint, fingerprint
from .beside import Beside, beside
from .factors import EMBEDDING, LINEAR, MAGNITUDE, Layer, adapted_paths, low_rank_layers
from .peft_files import (
    FLOATS,
    META_BASE,
    PREFIX,
    AdapterFiles,
    lora_config,
    metadata_object,
    names_its_targets,
)


class Fitting(NamedTuple):
    """An adapter that fits a model: its files, its config, the paths that it adapts, what else it
    trains.

    ``other_base`` says how its base differs from the model; empty if it does not.
    """

    files: AdapterFiles
    config: LoraConfig
    names: list[str]
    beside: Beside
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
    config, wrong = lora_config(files.config, sees_base=True)
    layers, names = low_rank_layers(model), adapted_paths(files.tensors)
    besides = Beside() if config is None else beside(model, config, files.tensors, names)
    wrong += [*strange_keys(files.tensors, besides.keys), *besides.wrong]
    if config is not None:
        wrong += disagreements(model, names, files, config, layers, besides.modules)
        wrong += misfits(model, names, files.tensors, config, layers)
        wrong += beside_other_bits(model, names, files, layers)
    other = other_base(base or partial(fingerprint, model, besides.key_of), files)
    if other and (strict or (wrong and META_BASE in files.metadata)):
        wrong.insert(0, other)  # it explains the rest
    if wrong or config is None:
        reasons = listed(wrong, 3 if "another architecture" in other else 8)
        raise ValueError(
            f"the adapter in {files.folder} does not fit this model: {reasons}. Nothing was changed"
        )
    return Fitting(files, config, names, besides, other)


def strange_keys(tensors: Mapping[str, Tensor], known: Collection[str]) -> list[str]:
    """What is wrong with a file's keys, apart from those that are accounted for."""
    if not tensors:
        return ["the file holds no tensors"]
    paths = adapted_paths(tensors)
    ours = {f"{PREFIX}{p}.{end}" for p in paths for end in (*LINEAR, *EMBEDDING, MAGNITUDE)}
    strange = [key for key in tensors if key not in ours and key not in known]
    if strange:
        expected = f"{PREFIX}<module>.lora_A.weight and .lora_B.weight"
        return [f"unknown tensors {listed(strange, 5, ', ')}, expected {expected}"]
    return []


def beyond_linears(config: LoraConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """What a file trains besides Linears, for readers that know A and B of Linears only."""
    fields = ("modules_to_save", "trainable_token_indices")
    more = [name for name in fields if getattr(config, name)]
    more += ["use_dora"] if config.use_dora else []
    more += ["init_lora_weights"] if config.init_lora_weights is not True else []
    more += ["bias"] if config.bias != "none" else []
    more += ["an embedding's A and B"] if any(key.endswith(EMBEDDING) for key in tensors) else []
    return [f"it has {', '.join(more)}: only A and B of Linears are read here"] if more else []


def disagreements(
    model: nn.Module,
    names: list[str],
    files: AdapterFiles,
    config: LoraConfig,
    layers: Mapping[str, Layer],
    whole: Collection[str],
) -> list[str]:
    """Where the config names other modules of this model than the file has tensors for."""
    if not names_its_targets(files.config, config):
        return []
    inside = tuple(f"{name}." for name in {**dict(adapter_layers(model)), **dict.fromkeys(whole)})
    every = sites_of(model, embeddings=True)
    sites = {site.path: site for site in every if not site.path.startswith(inside)}
    sites |= {n: site_of(n, layer) for n, layer in layers.items()}
    sites = {path: site for path, site in sites.items() if path not in whole}
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


def site_of(path: str, layer: Layer) -> Site:
    """The site of a module that has an adapter already."""
    linear = isinstance(layer, LoRALayer)
    return Site(path, layer.in_features, layer.out_features, is_linear=linear)


def misfits(
    model: nn.Module,
    names: list[str],
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    layers: Mapping[str, Layer],
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
        elif isinstance(layer, LoRALayer) and not is_of_kind(layer, config):
            theirs = f"use_dora={config.use_dora}, init_lora_weights={config.init_lora_weights!r}"
            wrong.append(f"{name} has a {type(layer).__name__} in this model, the file {theirs}")
        elif not config.use_dora and f"{PREFIX}{name}.{MAGNITUDE}" in tensors:
            wrong.append(f"{name} has magnitudes of DoRA, and its config does not say use_dora")
        else:
            wrong += misshapen(name, modules[name], r, tensors, config.use_dora)
    return wrong


def beside_other_bits(
    model: nn.Module, names: list[str], files: AdapterFiles, layers: Mapping[str, Layer]
) -> list[str]:
    """Where PEFT's A and B would stand beside another base than theirs.

    LoftQ's is NF4 with float scales; PiSSA's and OLoRA's starts are parts of the float weight.
    """
    start = files.config.get("init_lora_weights")
    modules = dict(named_modules(model)) | {name: layer.base for name, layer in layers.items()}
    if start in STARTS and (four := [n for n in names if isinstance(modules.get(n), NF4Linear)]):
        return [
            f"{four[0]}: init_lora_weights={start!r} began with a part of the float weight, which "
            "four bits do not hold: load it on the float base, and save it from there"
        ]
    if start != "loftq":
        return []
    for name in names:
        base: Any = modules.get(name)
        if not isinstance(base, NF4Linear) or not is_pefts_nf4(base):
            return [
                f"{name}: init_lora_weights='loftq' is for a base in NF4 with float scales, in "
                "blocks of 64: quantize_base(model, double_quant=False, skip=[Linears that are "
                "not its targets]) before the adapter is loaded"
            ]
    return []


def is_pefts_nf4(base: NF4Linear) -> bool:
    """Whether the codes are those that PEFT's LoftQ rounds to."""
    return (base.kind, base.block_size) == ("nf4", 64) and base.absmax2 is None


def is_of_kind(layer: LoRALayer, config: LoraConfig) -> bool:
    """Whether a model's layer is the variant of LoRA that a config asks for."""
    if isinstance(layer, ResidualLoRALayer):
        return layer.start == config.init_lora_weights
    return isinstance(layer, DoRALayer) == config.use_dora and config.init_lora_weights is True


def misshapen(
    name: str, module: nn.Module, r: int, tensors: Mapping[str, Tensor], use_dora: bool = False
) -> list[str]:
    """What is wrong with one module's two tensors, or DoRA's three."""
    table = isinstance(module, nn.Embedding)
    try:
        in_features, out_features = embedding_shape(module) if table else linear_shape(module)
    except TypeError:
        return [f"{name} is a {type(module).__name__} in this model, not a Linear"]
    wrong = []
    keys, factors = EMBEDDING if table else LINEAR, ((r, in_features), (out_features, r))
    shapes: dict[str, tuple[int, ...]] = dict(zip(keys, factors, strict=True))
    if use_dora:
        shapes[MAGNITUDE] = (out_features,)
    for key, shape in shapes.items():
        tensor, factor = tensors.get(f"{PREFIX}{name}.{key}"), key.removesuffix(".weight")
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
        named = files.config.get("base_model_name_or_path")
        hint = (
            f"; it names {named!r} as its base: open that (--base)"
            if isinstance(named, str)
            else ""
        )
        other = "was made for a base of another architecture (other parameters, or other shapes)"
        return other + hint
    if ours["tensors"] and saved.get("tensors") and saved.get("tensors") != ours["tensors"]:
        return (
            "was made for a base with other values "
            "(another model of this shape, or one quantized or rounded otherwise)"
        )
    return ""
