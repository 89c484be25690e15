"""Which base was an adapter made for? Two short hashes, of its architecture and of its values.

    architecture = hash of every parameter's (name, shape)
    tensors      = hash of every parameter's (name, values as float32)     in the order of the names

Both are about the base alone, under the names it has without adapters. So injecting, training an
adapter and unmerging leave them as they are, and so does a merge that keeps W0. A full fine-tune, a
merge for good and rounding to another dtype give another ``tensors``. A base stored in float16 and
loaded in float32 has the same one, and transformers' Llama has that of ours.

A base in four bits is the same architecture with other tensors: its weights are those that it
dequantizes to. An adapter that QLoRA trained on it is meant for the float base as well, so the
difference is a warning, not an error by itself.

The hash is BLAKE2b (RFC 7693), 64 bits of it; a 135M base takes about a second. It tells apart
bases that were mixed up. It does not say who made a file.

Left out: settings that no parameter shows, such as the number of heads or the base of the rotary
angles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import AdapterLayer, adapter_layers
from ..lora.attached import attached_modules
from ..lora.linears import whole
from ..lora.paths import named_modules
from ..lora.trained_copies import trained_copies
from ..nf4.linear import NF4Linear


@dataclass(frozen=True)
class Fingerprint:
    """16 hexadecimal digits each; ``tensors`` is empty when W0 is gone (``keep_base=False``).

    >>> Fingerprint("550c575c1a977cbe", "") == Fingerprint("550c575c1a977cbe", "e742518f08c67f58")
    False
    """

    architecture: str
    tensors: str


def fingerprint(model: nn.Module, without: Collection[str] = ()) -> Fingerprint:
    """The fingerprint of a model's base, adapters or not.

    ``without``: names of Parameters whose values do not count, since the adapter brings its own: a
    head that starts at random is another one each time.

    >>> base = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(base[0].weight)
    >>> fingerprint(base)
    Fingerprint(architecture='550c575c1a977cbe', tensors='e742518f08c67f58')
    >>> fingerprint(base) == fingerprint(base.half())
    True
    """
    names, values = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for name, shape, value in sorted(base_tensors(model), key=lambda entry: entry[0]):
        names.update(f"{name} {list(shape)}\n".encode())
        values.update(name.encode())
        if name not in without:
            values.update(value_bytes(value()))
    gone = any(layer.original_base() is None for _, layer in adapter_layers(model))
    return Fingerprint(names.hexdigest(), "" if gone else values.hexdigest())


def base_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Size, Callable[[], Tensor]]]:
    """(name without adapters, shape, getter of the value) of every base parameter, tied ones once.

    Values are computed one by one: a 4-bit weight counts as the float matrix that it dequantizes
    to.
    """
    inside = {id(layer.base) for _, layer in adapter_layers(model)}
    copies, seen = trained_copies(model), set[int]()
    hanging = tuple(f"{path}." for path, _ in attached_modules(model))
    for path, module in named_modules(model):
        if id(module) in inside or (hanging and f"{path}.".startswith(hanging)):
            continue
        base = module
        if isinstance(module, AdapterLayer):
            base = module.original_base() or module.base
        for key, parameter in base.named_parameters(prefix=path, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                original = copies[key].original if key in copies else parameter
                yield key, parameter.shape, partial(Tensor.detach, original)
        if isinstance(base, NF4Linear):
            size = torch.Size((base.out_features, base.in_features))
            yield f"{path}.weight".lstrip("."), size, partial(getattr, base, "weight")


def value_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values in float32, in row order, as bytes."""
    values = whole(tensor.detach()).to("cpu", torch.float32).contiguous()
    return values.view(-1).view(torch.uint8).numpy().data
