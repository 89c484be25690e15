"""Another adapter in a model that has one already, in place: pointers change, no weight is copied.

    swap_adapter(model, parts)      layer.lora_A, layer.lora_B, layer.scaling = parts[layer's path]

All adapters are replaced, or none. A module that the new adapter leaves alone loses its layer, and
one that it adapts anew gets one. For many adapters at the same time there is the bank
(``minilora.serving``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..text import listed
from .combining import LowRank
from .injection import check_container, require_adapters
from .layer import LoRALayer
from .linears import is_linear, linear_shape, made_beside
from .paths import named_modules, replace_modules
from .trained_copies import trained_copies


def swap_adapter(model: nn.Module, parts: Mapping[str, LowRank]) -> nn.Module:
    """Replace all LoRA adapters of a model by others, given as factors; returns the model.

    ``low_rank_parts``, ``combine`` and ``load_low_rank`` (from a folder) give parts. Their tensors
    are taken over, not copied, and an optimizer that was made before still has the old ones. Raises
    one ``ValueError``, changing nothing, when a path is not a Linear of this model, shapes do not
    fit, the adapters are merged, switched off or not LoRA's, or whole Parameters train too.

    >>> import torch
    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> swap_adapter(model, {"0": LowRank(torch.ones(3, 4), torch.ones(2, 3), scaling=0.5)})[0]
    LoRALayer(4 -> 2, r=3, scaling=0.5)
    """
    check_container(model)
    layers: dict[str, LoRALayer] = {}
    for path, layer in require_adapters(model):
        if type(layer) is not LoRALayer:
            raise ValueError(f"{path} has a {type(layer).__name__}; swap_adapter is for LoRA's")
        if layer.merged or not layer.enabled:
            state = "merged: unmerge(model)" if layer.merged else "off: swap outside the context"
            raise ValueError(f"the adapter at {path} is {state} first. Nothing was changed")
        layers[path] = layer
    if whole := [*trained_copies(model)]:
        raise ValueError(
            f"{whole[0]} trains too, whole, and would stay: swap_adapter is for A and B alone; "
            "unload(model) first. Nothing was changed"
        )
    others = parts.keys() - layers.keys()
    modules = dict(named_modules(model)) if others or len(parts) < len(layers) else {}
    bases = {path: modules.get(path) for path in others}
    bases |= {path: layer.base for path, layer in layers.items() if path in parts}
    if wrong := [why for path, part in parts.items() if (why := misfit(path, bases[path], part))]:
        raise ValueError(f"these parts do not fit this model: {listed(wrong)}. Nothing was changed")
    if not parts:
        raise ValueError("expected an adapter, got no parts: unload(model) takes the adapters out")
    first = next(iter(layers.values()))
    added = {path: beside(modules[path], parts[path], first) for path in others}
    removed = {path: layer.base for path, layer in layers.items() if path not in parts}
    if added or removed:
        replace_modules(model, {**added, **removed})
    for path, layer in layers.items():
        if path in parts:
            put(layer, parts[path])
    return model


def misfit(path: str, base: nn.Module | None, part: LowRank) -> str:
    """Why a part does not fit beside a module; empty if it does."""
    if base is None or not is_linear(base):
        return f"{path} is not a Linear of this model"
    (r, in_features), (out_features, columns) = part.A.shape, part.B.shape
    if (in_features, out_features) != linear_shape(base) or columns != r:
        shapes = f"A {tuple(part.A.shape)} and B {tuple(part.B.shape)}"
        return f"{path} has (in, out) {linear_shape(base)}, got {shapes}"
    return ""


def beside(base: nn.Module, part: LowRank, like: LoRALayer) -> LoRALayer:
    """A new layer around a Linear, with the dropout and the mode of the others."""
    layer = LoRALayer(base, r=1, lora_dropout=like.lora_dropout).train(like.training)
    put(layer, part)
    return layer


def put(layer: LoRALayer, part: LowRank) -> None:
    """Let a layer hold these factors; no copy where dtype and device are the layer's."""
    made, trains = made_beside(layer.base), layer.lora_A.requires_grad
    layer.lora_A = nn.Parameter(part.A.to(**made), requires_grad=trains)
    layer.lora_B = nn.Parameter(part.B.to(**made), requires_grad=trains)
    layer.r, layer.use_rslora = len(part.A), False
    layer.lora_alpha, layer.scaling = part.scaling * layer.r, part.scaling
