"""What an adapter's file holds beside A and B: whole modules, biases, token rows. PEFT's keys:

    <module of modules_to_save>.<parameter>                      the trained copy
    <path>.bias, <adapted path>.base_layer.bias                  trained biases
    <embedding>.token_adapter.trainable_tokens_delta   (k, d)    the rows themselves, no difference

Which of them belong in a file follows from its config and the model, so a missing one and an
unknown one are both found. PEFT 0.21 writes some things twice, which are dropped here: with
``bias="all"`` the biases of a wrapped module under three names; with an embedding among the targets
the whole frozen table, ``….base_layer.weight``, which must be the model's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import adapter_layers
from ..lora.config import LoraConfig
from ..lora.embedding import LoRAEmbedding
from ..lora.extras import Extras, modules_to_train, plan_extras
from ..lora.paths import named_modules
from ..lora.token_rows import TokenRows
from ..lora.trained_copies import owners_of, trained_copies
from .peft_files import FLOATS, PREFIX

BESIDE = ("bias", "task_type", "modules_to_save", "trainable_token_indices")
ROWS = ".token_adapter.trainable_tokens_delta"


def copy_key(name: str, adapted: Collection[str]) -> str:
    """PEFT's key of a Parameter that is trained whole."""
    path, _, last = name.rpartition(".")
    return f"{PREFIX}{path}.base_layer.{last}" if path in adapted else f"{PREFIX}{name}"


def tensors_beside(model: nn.Module) -> dict[str, Tensor]:
    """The trained copies and rows of a model, by PEFT's keys."""
    layers = dict(adapter_layers(model))
    copies = {copy_key(name, layers): each.copy for name, each in trained_copies(model).items()}
    rows = {p: layer.rows for p, layer in layers.items() if isinstance(layer, TokenRows)}
    return {
        # a copy each: tied ones share their storage, which safetensors refuses
        **{key: copy.detach().clone() for key, copy in copies.items()},
        **{f"{PREFIX}{path}{ROWS}": tensor.detach() for path, tensor in rows.items()},
    }


def fields_beside(model: nn.Module) -> dict[str, Any]:
    """The fields of a model's config that say what trains beside A and B, as PEFT writes them."""
    config = the_only_config(model)
    fields: dict[str, Any] = {"bias": "none" if config is None else config.bias}
    if config is not None and (config.modules_to_save or config.task_type):
        # a config of a part of the model may name modules of the rest, which do not train
        copies = trained_copies(model)
        paths = [
            path
            for path in modules_to_train(model, config)
            if any(name.startswith(f"{path}.") for name in copies)
        ]
        fields["modules_to_save"] = [name_of(model, path) for path in paths] or None
    rows = {p: layer.tokens for p, layer in adapter_layers(model) if isinstance(layer, TokenRows)}
    if rows:
        only = next(iter(rows.values()))
        plain = len(rows) == 1 and not isinstance(config.trainable_token_indices, Mapping)
        fields["trainable_token_indices"] = only if plain else rows
    return fields


def adapter_config(model: nn.Module) -> Any:
    """The config that was injected, or None in a model without adapters."""
    return next(configs_of(model), None)


def configs_of(model: nn.Module) -> Iterator[Any]:
    """Every config that was injected; several where parts of the model got one each."""
    configs = (getattr(module, "_adapter_config", None) for _, module in named_modules(model))
    return (config for config in configs if config is not None)


def the_only_config(model: nn.Module) -> Any:
    """``adapter_config``; ``ValueError`` where a second one trains other things beside A and B."""
    first, *others = [*configs_of(model)] or [None]
    if any(getattr(other, name) != getattr(first, name) for other in others for name in BESIDE):
        raise ValueError(
            "parts of this model were injected with configs that differ in "
            f"{', '.join(BESIDE)}, and a file has one config: save each part by itself"
        )
    return first


def name_of(model: nn.Module, path: str) -> str:
    """A path's last part where PEFT's rule finds only this module by it, else the whole path."""
    last = path.rpartition(".")[2]
    alone = [other for other, _ in named_modules(model) if other.endswith(last)] == [path]
    return last if alone else path


@dataclass(frozen=True)
class Beside:
    """What a file must hold beside A and B in this model, and what is wrong with it.

    ``keys`` are all of the file's keys that are accounted for; ``modules`` and ``rows`` are the
    config's names, resolved to this model's paths; ``key_of`` gives a copy's key by its name.
    """

    keys: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    key_of: dict[str, str] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()


def beside(
    model: nn.Module, config: LoraConfig, tensors: Mapping[str, Tensor], adapted: Collection[str]
) -> Beside:
    """Hold a file against what its config trains beside A and B. Changes nothing."""
    tables = [f"{PREFIX}{path}.base_layer.weight" for path in adapted]
    keys = {key for key in tables if key in tensors and is_own_table(model, key, tensors[key])}
    try:
        paths = tuple(modules_to_train(model, config, str.endswith))  # PEFT's rule
        plain = replace(config, modules_to_save=paths, task_type=None)
        extras = plan_extras(model, plain, adapted)
    except (TypeError, ValueError) as error:
        return Beside(frozenset(keys), wrong=(str(error),))
    key_of = {name: copy_key(name, adapted) for name in extras.parameters}
    owners, modules = owners_of(model), dict(named_modules(model))
    shapes = {key: tuple(getattr(*owners[name]).shape) for name, key in key_of.items()}
    for path, tokens in extras.rows.items():
        table: Any = modules[path]
        shapes[f"{PREFIX}{path}{ROWS}"] = (len(tokens), table.weight.shape[1])
    wrong = [line for key, shape in shapes.items() for line in misfit(key, shape, tensors)]
    wrong += other_extras(model, extras)
    keys |= shapes.keys() | twins(tensors, paths)
    return Beside(frozenset(keys), paths, extras.rows, key_of, tuple(wrong))


def misfit(key: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with one tensor of a file, in words."""
    name, tensor = key.removeprefix(PREFIX), tensors.get(key)
    if tensor is None:
        return [f"{name} is missing"]
    if tuple(tensor.shape) != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, expected {shape}"]
    if tensor.dtype not in FLOATS:
        return [f"{name} holds {tensor.dtype}, expected a floating-point dtype of 16 to 64 bits"]
    if not torch.isfinite(tensor.float()).all():
        return [f"{name} holds values that are not finite"]
    return []


def twins(tensors: Mapping[str, Tensor], paths: Collection[str]) -> set[str]:
    """The keys under which PEFT writes a wrapped module's bias again, with ``bias="all"``."""
    forms = [
        f"{PREFIX}{path}.{part}."
        for path in paths
        for part in ("modules_to_save", "original_module")
    ]
    return {key for key in tensors if key.startswith(tuple(forms)) and key.endswith("bias")}


def other_extras(model: nn.Module, extras: Extras) -> list[str]:
    """Where a model that has adapters trains other things beside them than the file holds."""
    layers = dict(adapter_layers(model))
    if not layers:
        return []
    rows = {p: tuple(la.tokens) for p, la in layers.items() if isinstance(la, TokenRows)}
    ours, theirs = trained_copies(model).keys(), extras.parameters.keys()
    wrong = [f"{name} trains whole in this model, but is not in the file" for name in ours - theirs]
    wrong += [f"{name} is in the file, but is frozen in this model" for name in theirs - ours]
    if rows != extras.rows:
        wrong.append(f"the file has rows for {extras.rows or 'no tokens'}, this model {rows}")
    return wrong


def is_own_table(model: nn.Module, key: str, table: Tensor) -> bool:
    """Whether a frozen embedding in a file is the one of this model."""
    path = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
    module = dict(named_modules(model)).get(path)
    base: Any = module.original_base() if isinstance(module, LoRAEmbedding) else module
    return isinstance(base, nn.Embedding) and torch.equal(
        base.weight.cpu(), table.to(base.weight.dtype)
    )


@torch.no_grad()
def load_beside(model: nn.Module, found: Beside, tensors: Mapping[str, Tensor]) -> None:
    """Copy a file's tensors into the copies and rows of a model that has them."""
    for name, trained in trained_copies(model).items():
        trained.copy.copy_(tensors[found.key_of[name]])
    for path, layer in adapter_layers(model):
        if isinstance(layer, TokenRows):
            layer.rows.copy_(tensors[f"{PREFIX}{path}{ROWS}"])
