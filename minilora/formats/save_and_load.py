"""Save a model's adapters for PEFT, and load PEFT's: strictly.

A folder written here opens in PEFT, and the other way round (formats/peft_files.py has the format).
PEFT is lenient where a user would rather know: with wrong keys it loads nothing and warns once, so
the base is served as if it were the fine-tune (huggingface/peft #2699). Here one error names
everything that does not fit (formats/mismatches.py), and the model stays as it was.

PiSSA and OLoRA are written as the plain LoRA that they are (methods/pissa.py).
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.attached import attached_modules
from ..lora.config import LoraConfig
from ..lora.injection import check_container, require_adapters
from ..lora.layer import LoRALayer
from ..lora.linears import is_conv1d
from ..lora.paths import named_modules, unwrapped
from ..lora.patterns import fits_pattern
from ..lora.token_rows import TiedHead, TokenRows
from ..lora.trained_copies import trained_copies
from ..methods.dora import DoRALayer
from ..methods.injection import inject
from ..methods.pissa import ResidualLoRALayer
from .attached_files import KNOWN, load_attached, save_attached
from .base_fingerprint import fingerprint
from .beside import Beside, adapter_config, fields_beside, load_beside, tensors_beside
from .factors import LINEAR, Layer, factors_of, low_rank_layers
from .method_files import CONFIGS, is_other_method, load_method, method_contents
from .mismatches import check_fit
from .model_card import Sections
from .peft_files import META_BASE, PREFIX, AdapterFiles, read_adapter_files, write_adapter_files
from .plain_lora import plain_lora

NOTHING = Beside()


def save_adapter(
    model: nn.Module, folder: str | Path, *, plain: bool = False, card: Sections | None = None
) -> Path:
    """Write a model's adapters as PEFT's files; of the base, only its fingerprint goes along.

    ``plain`` writes one rank and one alpha for all modules, for readers without patterns, as vLLM
    and llama.cpp (plain_lora.py). ``card`` is what the model card says beside the settings, by
    heading: ``{"Scores": {"exact match": 0.97}}``. Two equal adapters are written in equal bytes.

    Killed at any moment, it leaves the old adapter or the new one (formats/peft_files.py). Raises
    ``ValueError`` without adapters, when they differ in dropout or in the kind of scaling, or when
    they hold values that are not finite; ``OSError`` when the folder cannot be written.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in save_adapter(model, folder).iterdir())
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    check_container(model)
    if any(attached_modules(model)):
        return save_attached(model, Path(folder), plain, card)
    if any(is_other_method(layer) for _, layer in require_adapters(model)):
        return save_method(model, Path(folder), plain, card)
    config, tensors = lora_contents(model, plain)
    base = asdict(fingerprint(model, trained_copies(model)))
    write_adapter_files(Path(folder), config, tensors, base, card)
    return Path(folder)


def lora_contents(model: nn.Module, plain: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's config and tensors of a LoRA. Raises ``ValueError`` as ``save_adapter``."""
    layers = layers_to_save(model)
    kinds = {
        (layer.lora_dropout, layer.use_rslora and not plain, isinstance(layer, DoRALayer))
        for _, layer in layers
    }
    if len(kinds) > 1:
        raise ValueError(
            f"cannot save adapters that differ in (dropout, rslora, dora) as one: {sorted(kinds)}"
        )
    ranks = {name: layer.r for name, layer in layers}
    alphas = {name: layer.lora_alpha for name, layer in layers}
    tensors = adapter_tensors(layers) | tensors_beside(model)
    if plain:
        rank, alpha, tensors = plain_tensors(model)
        ranks, alphas = dict.fromkeys(ranks, rank), dict.fromkeys(alphas, alpha)
    lora_dropout, use_rslora, use_dora = kinds.pop()
    names = [name for name, _ in layers]
    r, rank_pattern = common_and_others(ranks)
    lora_alpha, alpha_pattern = common_and_others(alphas)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type(model),
        "base_model_name_or_path": base_name(model),
        "inference_mode": True,
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "fan_in_fan_out": any(is_conv1d(layer.base) for _, layer in layers),
        "target_modules": short_names(model, names),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        **fields_beside(model),
    }
    return config, tensors


def load_adapter(model: nn.Module, folder: str | Path, *, strict: bool = False) -> nn.Module:
    """Put a saved adapter into a model, injecting first if it has none; returns the model.

    Raises one ``ValueError`` that names everything that does not fit (missing and unknown tensors,
    shapes, values that are not finite, unsupported features, a base without such modules); the
    model is then as it was.

    An adapter made for another base, by its fingerprint (formats/base_fingerprint.py), may still
    fit by its shapes, so this only warns: a base in four bits and a resized vocabulary are other
    bases too. ``strict=True`` refuses it, and files that do not say.

    >>> import copy, tempfile
    >>> base = nn.Sequential(nn.Linear(4, 2))
    >>> trained = copy.deepcopy(base)
    >>> _ = inject(trained, LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_adapter(base, save_adapter(trained, folder))[0]
    LoRALayer(4 -> 2, r=1, scaling=16)
    """
    files = read_adapter_files(Path(folder))
    if (kind := str(files.config.get("peft_type"))) in KNOWN:  # a damaged file may hold a list
        return load_attached(model, files, strict)
    if kind in CONFIGS:
        warn_of_other_base(files, load_method(model, files, strict))
        return model
    fitting = check_fit(model, files, strict)
    layers = low_rank_layers(model)
    warn_of_other_base(files, fitting.other_base)
    if not layers:
        inject(model, exactly(fitting.names, fitting.config, fitting.beside))
        layers = low_rank_layers(model)
    with torch.no_grad():
        for name, layer in layers.items():
            for key, factor in factors_of(layer).items():
                factor.copy_(files.tensors[f"{PREFIX}{name}.{key}"])
    load_beside(model, fitting.beside, files.tensors)
    return model


def warn_of_other_base(files: AdapterFiles, other_base: str) -> None:
    """Warn when the files say that they were made on another base."""
    if other_base and META_BASE in files.metadata:
        differs = f"the adapter in {files.folder} {other_base}"
        warnings.warn(f"{differs}: compare its answers before you rely on them", stacklevel=3)


def save_method(model: nn.Module, folder: Path, plain: bool, card: Sections | None) -> Path:
    """``save_adapter`` for a method that is not LoRA (method_files.py)."""
    layers = require_adapters(model)
    if plain:
        raise ValueError(f"plain=True writes plain LoRA: {layers[0][0]} has no A and B to write so")
    said, tensors = method_contents(layers, partial(short_names, model))
    config = {
        "task_type": task_type(model),
        "base_model_name_or_path": base_name(model),
        "inference_mode": True,
        **said,
    }
    write_adapter_files(folder, config, tensors, asdict(fingerprint(model)), card)
    return folder


def layers_to_save(model: nn.Module) -> list[tuple[str, Layer]]:
    """Every adapter of a model; raise ``ValueError`` without any, or when one is not LoRA's."""
    layers = []
    for path, layer in require_adapters(model):
        if isinstance(layer, TokenRows | TiedHead):
            continue  # beside.py has them
        if isinstance(layer, ResidualLoRALayer):  # its own A and B mean nothing without its base
            layer = layer.as_lora()
        if not isinstance(layer, Layer):
            raise ValueError(
                f"{path} has a {type(layer).__name__}, which formats/method_files.py does not know"
            )
        layers.append((path, layer))
    return layers


def base_name(model: nn.Module) -> str | None:
    """The folder or name that ``load_base`` or transformers opened; None where neither did."""
    name = getattr(unwrapped(model), "name_or_path", None)  # transformers' attribute, and ours
    return name if isinstance(name, str) and name else None


def task_type(model: nn.Module) -> str | None:
    """PEFT's word for what the model does; with one, PEFT asks for ``generate``."""
    config, model = adapter_config(model), unwrapped(model)
    if isinstance(config, LoraConfig) and config.task_type is not None:
        return config.task_type
    if not hasattr(model, "generate"):  # ours, or a foreign library's
        return None
    two_sided = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return "SEQ_2_SEQ_LM" if two_sided else "CAUSAL_LM"


def linears_to_save(model: nn.Module) -> list[tuple[str, LoRALayer]]:
    """The layers, for readers of A and B of Linears only; ``ValueError`` if there is more."""
    layers = layers_to_save(model)
    linears = [(path, layer.as_lora()) for path, layer in layers if isinstance(layer, LoRALayer)]
    if len(linears) < len(layers) or tensors_beside(model):
        raise ValueError(
            "this adapter holds more than A and B of Linears (modules_to_save, biases, token rows "
            "or an embedding), which readers without patterns do not know: save it without plain"
        )
    return linears


def plain_tensors(model: nn.Module) -> tuple[int, float, dict[str, Tensor]]:
    """R, alpha and the tensors for readers without patterns."""
    rank, alpha, factors = plain_lora(linears_to_save(model))
    tensors: dict[str, Tensor] = {}
    for path, pair in factors.items():
        tensors |= {f"{PREFIX}{path}.{end}": t for end, t in zip(LINEAR, pair, strict=True)}
    return rank, alpha, tensors


def adapter_tensors(layers: list[tuple[str, Layer]]) -> dict[str, Tensor]:
    """A and B of every layer under PEFT's keys."""
    tensors = {}
    for name, layer in layers:
        for key, factor in factors_of(layer).items():
            tensors[f"{PREFIX}{name}.{key}"] = factor.detach()
    return tensors


def short_names(model: nn.Module, names: list[str]) -> list[str] | str:
    """Last parts of the names if they mean just these modules in this model, else the whole names.

    A whole name that is also the end of another path would mean both; then it takes one regular
    expression.
    """
    inside = tuple(f"{name}." for name in names)
    paths = [name for name, _ in named_modules(model) if not name.startswith(inside)]
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
            # ^: or the key would also match the end of another path
            key = re.escape(end) if len(by_end[end]) == 1 else f"^{re.escape(name)}"
            pattern[key] = value
    return common, pattern


def exactly(names: list[str], config: LoraConfig, found: Beside = NOTHING) -> LoraConfig:
    """The config that adapts just these modules, with the rank and alpha that ``config`` gives."""
    named = isinstance(config.trainable_token_indices, Mapping)

    def used(pattern: Mapping[str, Any]) -> dict[str, Any]:
        fitting = {key for key in pattern for n in names if fits_pattern(n, key) or n == key}
        return {key: value for key, value in pattern.items() if key in fitting}

    return replace(
        config,
        target_modules="|".join(map(re.escape, names)),
        exclude_modules=(),
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern=used(config.rank_pattern),
        alpha_pattern=used(config.alpha_pattern),
        modules_to_save=found.modules,
        trainable_token_indices=found.rows if named else config.trainable_token_indices,
    )
