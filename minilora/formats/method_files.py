"""What PEFT's two files hold of a method that is not LoRA: written, and read as strictly.

    peft_type    tensors of a module, after base_model.model.<path>.
    VERA         vera_lambda_b, vera_lambda_d; and once base_model.vera_A, vera_B
    IA3          ia3_l
    ADALORA      lora_A, lora_B, lora_E (no .weight), only the triplets that are left
    LN_TUNING    ln_tuning_layers.weight, .bias
    BITFIT       bias_delta; a type that PEFT does not know, and so refuses by name

A config names the shapes of its tensors (``AdapterConfig.shapes``), so one reader checks them all.
A field that the method does not have is refused unless its value says nothing: a file that asks for
more than is read here would be another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_config import AdapterConfig
from ..lora.adapter_layer import AdapterLayer, adapter_layers
from ..lora.linears import is_conv1d
from ..lora.matches import Site
from ..lora.selection import pattern_for
from ..lora.sites import sites_of
from ..methods.adalora import AdaLoraConfig, AdaLoRALayer
from ..methods.bitfit import BitFitConfig
from ..methods.ia3 import IA3Config, IA3Layer
from ..methods.injection import inject
from ..methods.norm_tuning import LNTuningConfig
from ..methods.vera import VeraConfig
from ..text import listed
from .base_fingerprint import fingerprint
from .mismatches import other_base
from .peft_files import META_BASE, PREFIX, AdapterFiles, is_tame

CONFIGS: dict[Any, type[Any]] = {
    kind.peft_type: kind
    for kind in (VeraConfig, IA3Config, AdaLoraConfig, LNTuningConfig, BitFitConfig)
}
SHARED = "base_model."  # VeRA's projections
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ABOUT_MODULES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# Fields of PEFT's that change nothing here, whatever they say.
IDLE = {
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "revision"),
    *("peft_version", "auto_mapping", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
    *("init_lora_weights", "init_weights", "init_ia3_weights", "r", "runtime_config"),
}
# What must be the same in a model that has these adapters already.
MEANING = {"VERA": ("r", "projection_prng_key"), "ADALORA": ("init_r", "lora_alpha")}
NOTHING: tuple[Any, ...] = (None, False, "none", {}, [], ())


def is_other_method(layer: AdapterLayer) -> bool:
    """Whether a layer's method is one of these, and not LoRA."""
    return type(getattr(layer, "config", None)) in CONFIGS.values()


def method_contents(
    layers: Sequence[tuple[str, AdapterLayer]], names_of: Callable[[list[str]], Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of ``adapter_config.json`` that the method decides, and the tensors.

    ``names_of`` writes module paths in PEFT's short form. Raises ``ValueError`` when the layers are
    of different methods.
    """
    kinds = {(type(layer).__name__, id(getattr(layer, "config", None))) for _, layer in layers}
    if len(kinds) > 1:
        names = ", ".join(sorted({name for name, _ in kinds}))
        raise ValueError(f"one folder holds one method's adapters, this model has several: {names}")
    config: Any = layers[0][1].config
    settings = {k: v for k, v in asdict(config).items() if k not in ABOUT_MODULES[1:]}
    settings |= {"peft_type": config.peft_type, "target_modules": names_of([n for n, _ in layers])}
    if config.peft_type in ("VERA", "IA3", "ADALORA"):
        settings["fan_in_fan_out"] = any(is_conv1d(layer.base) for _, layer in layers)
    tensors = {
        f"{PREFIX}{path}.{name}": tensor.detach()
        for path, layer in layers
        for name, tensor in layer.tensors().items()
    }
    if isinstance(config, IA3Config):
        inside = [n for n, layer in layers if isinstance(layer, IA3Layer) and layer.is_feedforward]
        settings["feedforward_modules"] = names_of(inside)
        if not set(settings["feedforward_modules"]) <= set(settings["target_modules"]):
            # PEFT compares two lists by their words
            settings["feedforward_modules"] = "|".join(map(re.escape, sorted(inside)))
    if isinstance(config, AdaLoraConfig):
        settings["rank_pattern"] = rank_pattern(layers)
    if isinstance(config, VeraConfig) and config.save_projection:
        tensors |= {f"{SHARED}{name}": tensor for name, tensor in projections(layers).items()}
    return settings, tensors


def rank_pattern(layers: Sequence[tuple[str, Any]]) -> dict[str, list[bool]] | None:
    """Which triplets are left of every module; None before any was pruned."""
    pattern = {f"{path}.lora_E": layer.alive_of_all() for path, layer in layers}
    return None if all(map(all, pattern.values())) else pattern


def projections(layers: Sequence[tuple[str, Any]]) -> dict[str, Tensor]:
    """VeRA's shared A and B."""
    shared = layers[0][1].projection
    return {"vera_A": shared.vera_A, "vera_B": shared.vera_B}


def load_method(model: nn.Module, files: AdapterFiles, strict: bool) -> str:
    """Put a method's files into a model, injecting first if it has none.

    Returns how the base differs from the file's, empty if it does not. Raises one ``ValueError``
    that names everything that does not fit; the model is then as it was.
    """
    layers = dict(adapter_layers(model))
    config, wrong = method_config(files.config)
    if config is not None:
        wrong += injected_otherwise(layers, config)
    names = paths_of(files.tensors, config)
    if config is not None and not wrong:
        wrong += misfits(model, files.tensors, names, config, layers)
    other = other_base(partial(fingerprint, model), files)
    if other and (strict or (wrong and META_BASE in files.metadata)):
        wrong.insert(0, other)  # it explains the rest
    if wrong or config is None:
        raise ValueError(
            f"the adapter in {files.folder} does not fit this model: {listed(wrong, 8)}. "
            "Nothing was changed"
        )
    if not layers:
        inject(model, just_these(config, names))
        layers = dict(adapter_layers(model))
    with torch.no_grad():
        for path, layer in layers.items():
            ours = layer.tensors()
            saved = {name: files.tensors[f"{PREFIX}{path}.{name}"] for name in ours}
            if isinstance(layer, AdaLoRALayer):
                layer.load(saved)
                continue
            for name, tensor in ours.items():
                tensor.copy_(saved[name])
        if isinstance(config, VeraConfig):
            for name, tensor in projections(list(layers.items())).items():
                tensor.copy_(files.tensors.get(f"{SHARED}{name}", tensor))
    return other


def method_config(saved: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """PEFT's config as ours (None where that fails), and everything that is wrong with it."""
    kind = CONFIGS[saved["peft_type"]]
    ours = {field.name for field in fields(kind)}
    given = {name: value for name, value in saved.items() if name in ours and value is not None}
    wrong = [
        f"{name}={value!r} is not a setting of {kind.peft_type} that is read here"
        for name, value in saved.items()
        if name not in ours | IDLE and value not in NOTHING
    ]
    patterns = [given.get(name) for name in (*ABOUT_MODULES, "feedforward_modules")]
    if wild := [p for p in patterns if isinstance(p, str) and not is_tame(p)]:
        return None, [*wrong, f"the pattern {wild[0]!r} could take forever to match"]
    if not given.get("target_modules"):
        return None, [*wrong, "it names no target_modules"]
    try:
        return kind(**given), wrong
    except (TypeError, ValueError, AttributeError) as error:
        return None, [*wrong, str(error)]


def injected_otherwise(layers: Mapping[str, AdapterLayer], config: Any) -> list[str]:
    """Why this file cannot go into the adapters that a model has already."""
    for path, layer in layers.items():
        own: Any = getattr(layer, "config", None)
        if type(own) is not type(config):
            kind = type(layer).__name__
            return [f"{path} has a {kind}, the file is {config.peft_type}'s: unload(model) first"]
        if layer.merged:
            return [f"{path} is merged in this model"]
        for name in MEANING.get(config.peft_type, ()):
            if getattr(own, name) != getattr(config, name):
                here, there = getattr(own, name), getattr(config, name)
                return [f"{path} has {name}={here} in this model, {name}={there} in the file"]
        if isinstance(layer, AdaLoRALayer):
            there = config.rank_pattern.get(f"{path}.lora_E")
            if layer.alive_of_all() != ([True] * own.init_r if there is None else there):
                return [f"{path} has other triplets left than in the file: unload(model) first"]
    return []


def paths_of(tensors: Mapping[str, Tensor], config: Any) -> list[str]:
    """Paths of the modules that the file has tensors for."""
    if config is None:
        return []
    ends = tuple(f".{name}" for name in config.shapes(Site("", 1, 1, bias=True)))
    inside = [key.removeprefix(PREFIX) for key in tensors if key.startswith(PREFIX)]
    stems = [key.removesuffix(end) for key in inside for end in ends if key.endswith(end)]
    return list(dict.fromkeys(stems))


def misfits(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    config: AdapterConfig,
    layers: Mapping[str, AdapterLayer],
) -> list[str]:
    """Everything about the tensors that does not fit the config and the model."""
    inside = tuple(f"{path}." for path in layers)
    norms = config.takes_norms
    sites = {s.path: s for s in sites_of(model, norms) if not s.path.startswith(inside)}
    for path, layer in layers.items():
        bias = norms and layer.bias is not None
        sites[path] = Site(path, layer.in_features, layer.out_features, bias=bias)
    targets = {path for path, site in sites.items() if pattern_for(site, config) is not None}
    targets = set(layers) or targets
    wrong = [f"{path} has no tensors in the file" for path in sorted(targets - set(names))]
    expected: dict[str, tuple[int, ...]] = {}
    for path in names:
        if path not in sites:
            wrong.append(f"the base has no module {path}")
        elif path not in targets:
            wrong.append(f"{path} has tensors, but is not a target of its config")
        elif sites[path].refused:
            wrong.append(f"{path} is {sites[path].refused}")
        else:
            shapes = config.shapes(sites[path])
            expected |= {f"{PREFIX}{path}.{name}": shape for name, shape in shapes.items()}
    if isinstance(config, VeraConfig) and f"{SHARED}vera_A" in tensors and not wrong:
        chosen = [sites[path] for path in names]
        expected[f"{SHARED}vera_A"] = (config.r, max(site.in_features for site in chosen))
        expected[f"{SHARED}vera_B"] = (max(site.out_features for site in chosen), config.r)
    return wrong or misshapen(tensors, expected) or unlike(layers, expected)


def unlike(
    layers: Mapping[str, AdapterLayer], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Tensors that have another shape in the adapters of this model."""
    own = {
        f"{PREFIX}{path}.{name}": tuple(tensor.shape)
        for path, layer in layers.items()
        for name, tensor in layer.tensors().items()
    }
    return [
        f"{short(key)} is {shape} in this model, {expected[key]} in the file: unload(model) first"
        for key, shape in own.items()
        if shape != expected[key]
    ]


def misshapen(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Missing and unknown tensors, wrong shapes and dtypes, values that are not finite."""
    wrong = [f"{short(key)} is missing" for key in expected if key not in tensors]
    if strange := [key for key in tensors if key not in expected]:
        wrong.append(f"unknown tensors {listed(strange, 5, ', ')}")
    for key, shape in expected.items():
        tensor = tensors.get(key)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            wrong.append(f"{short(key)} has shape {tuple(tensor.shape)}, expected {shape}")
        elif tensor.dtype not in FLOATS:
            wrong.append(f"{short(key)} holds {tensor.dtype}, expected a floating-point dtype")
        elif not torch.isfinite(tensor.float()).all():
            wrong.append(f"{short(key)} holds values that are not finite")
    return wrong


def short(key: str) -> str:
    """A tensor's name without PEFT's prefix."""
    return key.removeprefix(PREFIX).removeprefix(SHARED)


def just_these(config: Any, names: Sequence[str]) -> AdapterConfig:
    """The config that adapts just these modules."""
    known = {field.name for field in fields(config)}
    none: dict[str, Any] = {"exclude_modules": (), "layers_to_transform": None}
    none["layers_pattern"] = None
    rest = {name: value for name, value in none.items() if name in known}
    return replace(config, target_modules="|".join(map(re.escape, names)), **rest)
