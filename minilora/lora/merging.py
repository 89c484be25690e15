"""Fold adapters into the weights, and take them out again.

    merge     W = W0 + ΔW              one tensor, no extra work at inference
    unmerge   W = W0                   the kept original, to the bit

(Several adapters as one: combining.py.)

A model is merged whole or not at all: every merged base is made and checked before the first one
is put in place (huggingface/peft #3710 collects merges that write first and check later).

A base in four bits takes no small ΔW: the gaps between its levels are wider (huggingface/peft
#2321). So a merge there goes into a float weight, and the caller says which: onto Ŵ, which the
adapter was trained on, so that the model computes what it does now; or onto the original W0, which
knows more than Ŵ, but which the adapter never saw. ``merge_and_requantize`` goes back into four
bits, and returns what that lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nf4.linear import NF4Linear, plain_linear
from ..text import listed
from .adapter_layer import AdapterLayer
from .injection import check_container, require_adapters, take_out
from .linears import is_linear, is_sharded
from .paths import named_modules, replace_modules
from .requantization import Requantized, loss_of, outputs, quantize_like

Layers = Sequence[tuple[str, AdapterLayer]]


def merge(
    model: nn.Module,
    keep_base: bool = True,
    *,
    onto: str | nn.Module | None = None,
    requantize: object = None,
) -> nn.Module:
    """Write ``W0 + ΔW`` into every adapted Linear, in place. Returns the model.

    ``unmerge`` gives W0 back to the bit; ``keep_base=False`` drops it and so needs no second copy
    of the weights: for deployment. On a base in four bits say ``onto="dequantized"``, or ``onto=``
    the float model that was quantized: each adapted Linear becomes a float one. Raises
    ``ValueError``, changing nothing, without adapters, when merged already, in training mode with
    dropout, when a sum is not finite, or when ``onto`` is missing or does not fit.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> merge(model)[0]
    LoRALayer(4 -> 2, r=1, scaling=16, merged)
    """
    if requantize is not None:
        raise ValueError("merge has no requantize any more: call merge_and_requantize(model)")
    layers = require_adapters(model)
    put_all(layers, merged_bases(layers, onto), keep_base)
    return model


@torch.no_grad()
def merge_and_requantize(
    model: nn.Module,
    keep_base: bool = True,
    *,
    onto: str | nn.Module = "dequantized",
    inputs: Tensor | None = None,
) -> Requantized:
    """Merge a base in four bits and put it back into four bits, in place; returns what that lost.

    With ``inputs`` for the model, also by how much its outputs moved. ``onto`` and the errors are
    those of ``merge``.

    >>> import minilora
    >>> model = minilora.quantize_base(nn.Sequential(nn.Linear(64, 8)))
    >>> _ = minilora.inject(model, minilora.LoraConfig(r=1, target_modules=["0"]))
    >>> _ = nn.init.ones_(model[0].lora_B)
    >>> merge_and_requantize(model).losses[0].name
    '0'
    """
    layers = require_adapters(model)
    merged, weights = merged_bases(layers, onto), weights_to_merge_onto(layers, onto)
    quantized, losses = [], []
    for (path, layer), base in zip(layers, merged, strict=True):
        if isinstance(layer.base, NF4Linear):
            again = with_path(path, quantize_like, layer.base, base)
            losses.append(loss_of(path, layer, weights.get(path), base.weight, again))
            base = again
        quantized.append(base)
    exact = None
    if inputs is not None:  # what the model computes with the sums in floats
        put_all(layers, merged, keep_base=True)
        try:
            exact = outputs(model, inputs)
        finally:
            unmerge(model)
    put_all(layers, quantized, keep_base=True)
    difference = None
    if exact is not None:
        try:
            difference = ((outputs(model, inputs) - exact).norm() / exact.norm()).item()
        except Exception:
            unmerge(model)
            raise
    if not keep_base:
        for _, layer in layers:
            layer.kept = ()
    return Requantized(tuple(losses), difference)


def merged_bases(layers: Layers, onto: str | nn.Module | None) -> list[Any]:
    """Every layer's merged base, checked, in the order of the layers. Changes nothing."""
    for path, layer in layers:
        with_path(path, layer.check_mergeable)
        if any(map(is_sharded, layer.parameters())):
            raise ValueError(
                f"{path}: its base is sharded over several ranks; save the adapter, and merge it "
                "beside a whole base. Nothing was changed"
            )
    weights = weights_to_merge_onto(layers, onto)
    return [with_path(path, layer.merged_base, weights.get(path)) for path, layer in layers]


def put_all(layers: Layers, bases: Sequence[nn.Module], keep_base: bool) -> None:
    """Put merged bases in place."""
    for (_, layer), base in zip(layers, bases, strict=True):
        layer.put(base, keep_base)


def weights_to_merge_onto(layers: Layers, onto: str | nn.Module | None) -> dict[str, Tensor]:
    """The original float weights by path, where the caller chose those; {} otherwise."""
    packed = {path: layer for path, layer in layers if isinstance(layer.base, NF4Linear)}
    if onto is not None and not packed:
        raise ValueError(
            "onto and merge_and_requantize are for a base in four bits; this one is in floats: "
            "merge(model) is all it needs"
        )
    if packed and onto is None:
        raise ValueError(
            f"{next(iter(packed))} is in four bits, where most of ΔW would be rounded away. Say "
            "onto='dequantized' (the model then computes what it does now) or onto=original, the "
            "float model that was quantized; or call merge_and_requantize(model), which reports "
            "what is lost. Nothing was changed"
        )
    check_onto(onto)
    return original_weights(onto, packed) if isinstance(onto, nn.Module) else {}


def check_onto(onto: str | nn.Module | None) -> None:
    """Raise ``ValueError`` unless this is a way to merge."""
    if not isinstance(onto, nn.Module | None) and onto != "dequantized":
        raise ValueError(
            f"onto must be 'dequantized' or the original float model, got {onto!r}. "
            "Nothing was changed"
        )


def original_weights(
    original: nn.Module, needed: Mapping[str, Any], option: str = "onto"
) -> dict[str, Tensor]:
    """A float model's weights at these paths; one error names all that do not fit."""
    modules: dict[str, Any] = dict(named_modules(original))
    weights, wrong = {}, []
    for path, layer in needed.items():
        module, shape = modules.get(path), (layer.out_features, layer.in_features)
        if module is None or not is_linear(module) or isinstance(module, NF4Linear):
            wrong.append(f"{path} is not a float Linear there")
        elif tuple(module.weight.shape) != shape:
            wrong.append(f"{path} has shape {tuple(module.weight.shape)} there, expected {shape}")
        else:
            weights[path] = module.weight.detach()
    if wrong:
        raise ValueError(f"{option} does not fit this model: {listed(wrong)}. Nothing was changed")
    return weights


def unmerge(model: nn.Module) -> nn.Module:
    """Give every Linear its W0 back, to the bit. Raises ``ValueError`` when one has none.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> before, _ = model[0].weight.clone(), inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> _ = nn.init.ones_(model[0].lora_B)
    >>> torch.equal(merge(model)[0].weight, before), torch.equal(unmerge(model)[0].weight, before)
    (False, True)
    """
    layers = require_adapters(model)
    for path, layer in layers:
        with_path(path, layer.check_unmergeable)
    for _, layer in layers:
        layer.unmerge()
    return model


def merge_and_unload(model: nn.Module, *, onto: str | nn.Module | None = None) -> nn.Module:
    """Merge, then take the adapters out: an ordinary model again, in place. Returns the model.

    A model that is merged already keeps its merge. With ``onto`` (for a base in four bits, see
    ``merge``) the Linears without adapters become floats too. Raises as ``merge``, changing
    nothing.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> merge_and_unload(model)
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    check_container(model)
    check_onto(onto)
    adapted = dict(require_adapters(model))
    for path, layer in adapted.items():
        with_path(path, layer.check_enabled)
    inside = {f"{path}.base" for path in adapted}
    rest: dict[str, NF4Linear] = {}
    if onto is not None:
        modules = named_modules(model)
        rest = {p: m for p, m in modules if isinstance(m, NF4Linear) and p not in inside}
    originals = original_weights(onto, rest) if isinstance(onto, nn.Module) else {}
    if not all(layer.merged for layer in adapted.values()):
        merge(model, keep_base=False, onto=onto)
    take_out(model)
    replace_modules(model, {p: float_linear(m, originals.get(p)) for p, m in rest.items()})
    return model


def float_linear(layer: NF4Linear, original: Tensor | None) -> nn.Module:
    """A float Linear in place of a 4-bit one, with its own weight or the original."""
    weight = layer.weight
    if original is not None:
        weight = original.to(weight.device, weight.dtype, copy=True)
    return plain_linear(weight, layer.bias).train(layer.training)


def with_path(path: str, action: Any, *arguments: Any) -> Any:
    """Call ``action``; the layer's path stands at the front of its error."""
    try:
        return action(*arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Nothing was changed") from error
