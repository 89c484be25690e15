"""Which base was an adapter made for? A fingerprint of its architecture and one of its values, small enough to travel along.

    architecture = hash of every parameter's (name, shape)
    tensors      = hash of every parameter's (name, values as float32)        in the order of the names

Both are about the base alone, under the names it has without adapters. So injecting, training an adapter and unmerging leave
them as they are; so does a merge that keeps W0. A full fine-tune, a merge for good and a rounding to another dtype give other
tensors. A base stored in float16 and loaded in float32 has the same, and transformers' Llama has those of ours.

A base in four bits is the same architecture with other tensors: its weights are those that it dequantizes to. What QLoRA
trained on it is meant for the float base as well, so this is a difference to be told of, not an error by itself.

The hash is BLAKE2b (RFC 7693), 64 bits of it; a 135M base takes about a second. It tells bases apart that were mixed up. It
does not say who made a file. Left out: what no parameter shows, such as the number of heads or the base of the rotary angles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .lora import LoRALayer


@dataclass(frozen=True)
class Fingerprint:
    """16 hexadecimal digits each; ``tensors`` is empty when W0 is gone (merged with ``keep_base=False``)."""

    architecture: str
    tensors: str


def fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of a model's base, adapters or not.

    >>> base = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(base[0].weight)
    >>> fingerprint(base)
    Fingerprint(architecture='550c575c1a977cbe', tensors='e742518f08c67f58')
    >>> fingerprint(base) == fingerprint(base.half())
    True
    """
    names, values = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    known = True
    for name, shape, module, key in sorted(base_parameters(model), key=lambda found: found[0]):
        names.update(f"{name} {list(shape)}\n".encode())
        known = known and not (isinstance(module, LoRALayer) and module.merged and module.kept_weight is None)
        if known:
            values.update(name.encode())
            values.update(value_bytes(base_value(module, key)))
    return Fingerprint(names.hexdigest(), values.hexdigest() if known else "")


def base_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Size, nn.Module, str]]:
    """(name without adapters, shape, module that has it, its name there) of every parameter of the base, tied ones once.

    The module of an adapted weight is its ``LoRALayer``, which may keep W0 elsewhere. A 4-bit weight counts as the float matrix
    that it stands for.
    """
    bases = {id(module.base): module for module in model.modules() if isinstance(module, LoRALayer)}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, LoRALayer):
            continue  # lora_A and lora_B; the base comes by itself
        layer = bases.get(id(module))
        prefix = path if layer is None else path.removesuffix("base").removesuffix(".")
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                owner = layer if layer is not None and key == "weight" else module
                yield f"{prefix}.{key}".lstrip("."), parameter.shape, owner, key
        if hasattr(module, "quantized"):
            yield f"{prefix}.weight".lstrip("."), torch.Size((module.out_features, module.in_features)), module, "weight"


def base_value(module: nn.Module, key: str) -> Tensor:
    """A base parameter's value: W0 where a merge keeps it."""
    if isinstance(module, LoRALayer) and module.kept_weight is not None:
        return module.kept_weight
    return getattr(module, key)


def value_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values in float32, in row order, as bytes."""
    return tensor.detach().to("cpu", torch.float32).contiguous().view(-1).view(torch.uint8).numpy().data
