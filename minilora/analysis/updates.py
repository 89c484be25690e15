"""ΔW of every Linear, and a model that has other updates for a moment.

    undo a part       with_updates(tuned, {path: -ΔW[path] for path in part})
    cut to rank k     with_updates(base, {path: cut(ΔW[path], k) for path in ΔW})
    two adapters      with_updates(base, {path: ΔA[path] + ΔB[path] …})

Undoing a part and measuring again says what *is needed after training*, not what could have learnt
the task by itself: both questions are asked of "which layers matter", and the answers differ.

Left out: embeddings and norms (``lora/weight_diff.py`` names those that changed).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import AdapterLayer
from ..lora.injection import require_adapters
from ..lora.layer import LoRALayer
from ..lora.linears import is_conv1d, weight_of
from ..lora.paths import named_modules
from ..lora.weight_diff import effective_weights
from ..nf4.linear import NF4Linear
from ..text import listed

Updates = Mapping[str, Tensor]
NUMBER = re.compile(r"\.(\d+)\.")


@torch.no_grad()
def weight_updates(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """``ΔW = W1 − W0`` (out, in) of every Linear whose weight differs, in float32, by path.

    Raises ``ValueError`` when the two models do not have the same Linears.

    >>> import copy
    >>> one = nn.Sequential(nn.Linear(2, 2))
    >>> other = copy.deepcopy(one)
    >>> _ = other[0].weight.data.add_(1.0)
    >>> weight_updates(one, other)["0"].round().tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    old, new = effective_weights(before), effective_weights(after)
    if other := [path for path in old.keys() | new.keys() if shape(old, path) != shape(new, path)]:
        shown = listed(sorted(other), 5, ", ")
        raise ValueError(f"expected two models with the same Linears, these differ: {shown}")
    return {
        path: new[path].float() - weight.float()
        for path, weight in old.items()
        if not torch.equal(new[path], weight)
    }


def shape(weights: Mapping[str, Tensor], path: str) -> tuple[int, ...]:
    """A weight's shape; empty where there is none."""
    return tuple(weights[path].shape) if path in weights else ()


@torch.no_grad()
def adapter_updates(model: nn.Module) -> dict[str, Tensor]:
    """ΔW (out, in) of every adapter in a model, by path.

    Raises ``ValueError`` without adapters, and where one was merged with ``keep_base=False``.

    >>> from minilora import LoRALayer
    >>> adapter_updates(nn.Sequential(LoRALayer(nn.Linear(4, 2), r=1)))["0"].shape
    torch.Size([2, 4])
    """
    return {path: update_of(path, layer) for path, layer in require_adapters(model)}


def update_of(path: str, layer: AdapterLayer) -> Tensor:
    """ΔW of one adapter: its factors' product, or, where it is no sum, what ``fold`` changes."""
    if is_a_product(layer):
        return layer.delta_weight()
    if (base := layer.original_base()) is None:
        raise ValueError(f"{path} was merged with keep_base=False, so W0 is gone: load the base")
    weight = weight_of(base)
    folded, _ = layer.fold(weight, getattr(base, "bias", None))
    return folded.detach() - weight.to(folded)


def is_a_product(layer: AdapterLayer) -> TypeGuard[LoRALayer]:
    """Whether a layer adds ``delta_weight`` to its weight: LoRA and PiSSA, but not DoRA."""
    return isinstance(layer, LoRALayer) and type(layer).fold is LoRALayer.fold


@contextmanager
def with_updates(model: nn.Module, changes: Updates) -> Iterator[nn.Module]:
    """A context in which the Linears at these paths compute with ``W + ΔW``; then W, to the bit.

    A model with adapters keeps them, and its bases change. Raises ``ValueError``, changing nothing,
    for a path that is no float Linear here or a shape that does not fit.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> with with_updates(model, {"0": -model[0].weight.detach()}):
    ...     model(torch.ones(1, 1)).item()
    0.0
    """
    modules = dict(named_modules(model))
    changed: list[tuple[Any, Tensor]] = []
    for path, update in changes.items():
        module: Any = modules.get(path)
        module = getattr(module, "base", module)  # of an adapter, the Linear inside
        if not isinstance(module, nn.Linear) and not (module is not None and is_conv1d(module)):
            four_bits = isinstance(module, NF4Linear)
            what = "in four bits: take dequantize_base(model)" if four_bits else "no Linear here"
            raise ValueError(f"{path} is {what}. Nothing was changed")
        if weight_of(module).shape != update.shape:
            expected, got = tuple(weight_of(module).shape), tuple(update.shape)
            raise ValueError(f"{path}: expected ΔW {expected}, got {got}. Nothing was changed")
        changed.append((module, update))
    kept = [module.weight.data for module, _ in changed]
    try:
        for module, update in changed:
            weight = weight_of(module)
            new = (weight + update.to(weight.device)).to(weight.dtype)
            module.weight.data = new.T.contiguous() if is_conv1d(module) else new
        yield model
    finally:
        for (module, _), weight in zip(changed, kept, strict=True):
            module.weight.data = weight


def without_parts(
    model: nn.Module,
    changes: Updates,
    parts: Mapping[Any, Sequence[str]],
    measure: Callable[[nn.Module], Any],
) -> dict[Any, Any]:
    """``measure(model)`` with one part's updates taken back at a time, by the part's name.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer in model: _ = nn.init.constant_(layer.weight, 3.0)
    >>> ones = {"0": torch.ones(1, 1), "1": 2 * torch.ones(1, 1)}  # what a fine-tune added
    >>> value = lambda model: model(torch.ones(1, 1)).item()
    >>> without_parts(model, ones, {"first": ["0"], "second": ["1"]}, value)
    {'first': 6.0, 'second': 3.0}
    """
    measured = {}
    for name, paths in parts.items():
        with with_updates(model, {path: -changes[path] for path in paths}):
            measured[name] = measure(model)
    return measured


def layer_of(path: str) -> int | None:
    """The layer in a module's path: its first number between dots.

    >>> layer_of("model.layers.3.mlp.up_proj"), layer_of("lm_head")
    (3, None)
    """
    number = NUMBER.search(f".{path}.")
    return int(number[1]) if number else None


def by_layer(paths: Iterable[str]) -> dict[int, list[str]]:
    """Paths by their layer, in order; those in no layer are left out.

    >>> by_layer(["layers.0.q_proj", "layers.1.q_proj", "lm_head"])
    {0: ['layers.0.q_proj'], 1: ['layers.1.q_proj']}
    """
    groups: dict[int, list[str]] = {}
    for path in paths:
        if (layer := layer_of(path)) is not None:
            groups.setdefault(layer, []).append(path)
    return dict(sorted(groups.items()))


def by_kind(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths by their last name: all ``q_proj`` together.

    >>> by_kind(["layers.0.q_proj", "layers.1.q_proj"])
    {'q_proj': ['layers.0.q_proj', 'layers.1.q_proj']}
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path.rpartition(".")[2], []).append(path)
    return groups
