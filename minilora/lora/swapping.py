"""Another adapter in a model that has one already, in place: pointers change, no weight is copied.

    swap_adapter(model, parts)      layer.lora_A, layer.lora_B, layer.scaling = parts[layer's path]

All adapters are replaced, or none. A module that the new adapter leaves alone loses its layer, and
one that it adapts anew gets one.

``swap_adapter`` looks at the whole model each time. ``AdapterSwitch`` does so once, and makes the
layers of each of its adapters; from then on the next adapter is one assignment a layer. For many
adapters at the same time there is the bank (``minilora.serving``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..text import did_you_mean, listed
from .combining import LowRank
from .injection import check_container, require_adapters
from .layer import LoRALayer
from .linears import is_linear, linear_shape, made_beside
from .paths import named_modules, replace_modules
from .sites import sites_of
from .trained_copies import trained_copies


def swap_adapter(model: nn.Module, parts: Mapping[str, LowRank]) -> nn.Module:
    """Replace all LoRA adapters of a model by others, given as factors; returns the model.

    ``low_rank_parts``, ``combine`` and ``load_low_rank`` (from a folder) give parts. Their tensors
    are taken over, not copied, and an optimizer that was made before still has the old ones. Raises
    one ``ValueError``, changing nothing, when ``inject`` would not take a path's module, shapes do
    not fit, the adapters are merged, switched off or not LoRA's, or whole Parameters train too.

    >>> import torch
    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> swap_adapter(model, {"0": LowRank(torch.ones(3, 4), torch.ones(2, 3), scaling=0.5)})[0]
    LoRALayer(4 -> 2, r=3, scaling=0.5)
    """
    layers = swappable(model)
    others = parts.keys() - layers.keys()
    modules = dict(named_modules(model)) if others or len(parts) < len(layers) else {}
    bases = {path: modules.get(path) for path in others}
    bases |= {path: layer.base for path, layer in layers.items() if path in parts}
    refused = refusals(model, others)
    wrong = [misfit(path, bases[path], part, refused.get(path)) for path, part in parts.items()]
    if wrong := list(filter(None, wrong)):
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


class AdapterSwitch:
    """Several adapters of one model made ready once; then the next is a pointer a layer away.

    ``adapters``: parts by name, as ``swap_adapter`` takes them; ``{}`` is the base alone. The
    adapters that the model has now stay until the first ``to``. Each keeps its own Parameters, and
    those that stand in the model are the model's. Raises ``ValueError`` as ``swap_adapter``.

    >>> import torch
    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> parts = {"0": LowRank(torch.ones(3, 4), torch.ones(2, 3), scaling=0.5)}
    >>> switch = AdapterSwitch(model, {"ones": parts, "none": {}})
    >>> switch.to("ones")
    >>> model[0]
    LoRALayer(4 -> 2, r=3, scaling=0.5)
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Mapping[str, LowRank]]):
        layers = swappable(model)
        modules = dict(named_modules(model))
        paths = dict.fromkeys([*layers, *(path for parts in adapters.values() for path in parts)])
        now: dict[str, Any] = {path: modules.get(path) for path in paths}
        bases = {path: m.base if isinstance(m, LoRALayer) else m for path, m in now.items()}
        refused = refusals(model, paths.keys() - layers.keys())
        if wrong := [
            f"{name}: {why}"
            for name, parts in adapters.items()
            for path, part in parts.items()
            if (why := misfit(path, bases[path], part, refused.get(path)))
        ]:
            raise ValueError(f"these parts do not fit this model: {listed(wrong)}")
        first, by_path = next(iter(layers.values())), {m: path for path, m in now.items()}
        named = named_modules(model, remove_duplicate=False)  # a layer may stand in two places
        self.places = [  # where a module stands: its parent, its name there, its path
            (parent, name, by_path[child])
            for _, parent in named
            for name, child in parent._modules.items()
            if child in by_path
        ]
        if missing := by_path.keys() - {m._modules[name] for m, name, _ in self.places}:
            raise ValueError(f"{by_path[missing.pop()]} is wrapped: make the switch before that")
        self.now = now
        self.ready: dict[str, dict[str, Any]] = {
            name: {p: beside(b, parts[p], first) if p in parts else b for p, b in bases.items()}
            for name, parts in adapters.items()
        }

    def to(self, name: str) -> None:
        """Put an adapter in. Raises ``ValueError``, changing nothing, for an unknown name, and when
        the model's adapters were changed otherwise, are merged, or switched off.
        """
        if name not in self.ready:
            known = f"known are: {', '.join(self.ready)}"
            raise ValueError(f"no adapter {name!r} here; {did_you_mean(name, self.ready, known)}")
        now, then = self.now, self.ready[name]
        for parent, child, path in self.places:
            if parent._modules[child] is not now[path]:
                raise ValueError(f"the adapter at {path} is another by now: make a new switch")
            if type(now[path]) is LoRALayer:
                check_in_use(path, now[path])
        for parent, child, path in self.places:
            layer = then[path]
            if layer.training is not parent.training:
                layer.train(parent.training)
            parent._modules[child] = layer
        self.now = then


def swappable(model: nn.Module) -> dict[str, LoRALayer]:
    """The LoRA layers of a model by path; ``ValueError`` unless they are all that it trains."""
    check_container(model)
    layers: dict[str, LoRALayer] = {}
    for path, layer in require_adapters(model):
        if type(layer) is not LoRALayer:
            raise ValueError(f"{path} has a {type(layer).__name__}; swap_adapter is for LoRA's")
        check_in_use(path, layer)
        layers[path] = layer
    if whole := [*trained_copies(model)]:
        raise ValueError(
            f"{whole[0]} trains too, whole, and would stay: swap_adapter is for A and B alone; "
            "unload(model) first. Nothing was changed"
        )
    return layers


def check_in_use(path: str, layer: LoRALayer) -> None:
    """Raise ``ValueError`` for a layer that is merged or switched off."""
    if layer.merged or not layer.enabled:
        state = "merged: unmerge(model)" if layer.merged else "off: swap outside the context"
        raise ValueError(f"the adapter at {path} is {state} first. Nothing was changed")


def refusals(model: nn.Module, paths: Collection[str]) -> dict[str, str]:
    """Why modules without an adapter cannot have one, as ``inject`` says it; empty if they can."""
    return {s.path: s.refused for s in sites_of(model) if s.path in paths} if paths else {}


def misfit(path: str, base: nn.Module | None, part: LowRank, refused: str | None = None) -> str:
    """Why a part does not fit beside a module; empty if it does."""
    if base is None or not is_linear(base):
        return f"{path} is not a Linear of this model"
    if refused:
        return f"{path}, {refused}"
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
