"""Fold adapters into the weights, take them out again, add several into one.

    merge     W = W0 + ΔW              one tensor, no extra work at inference
    unmerge   W = W0                   the kept original, to the bit
    combine   ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ       exact, as one adapter of rank Σ rᵢ: stack the factors

Summing the factors instead, (Σ Aᵢ)(Σ Bᵢ), brings cross-terms Bᵢ Aⱼ that no adapter ever learnt
(huggingface/peft #3004); stacking [w₁s₁B₁ … wₙsₙBₙ] [A₁; …; Aₙ] has none.

A model is merged whole or not at all: every new weight is computed and checked before the first one is put in place
(huggingface/peft #3710 is what happens otherwise).

A base in four bits takes no small ΔW: the gaps between its levels are wider (huggingface/peft #2321). So a merge there goes
into a float weight, and the caller says which: onto Ŵ, which the adapter was trained on, so that the model computes what it
does now; or onto the original W0, which knows more than Ŵ, but which the adapter never saw. Back into four bits only with
``requantize=True``, and then the answer is what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from ..nf4.linear import plain_linear
from ..text import listed
from .injection import check_container, require_lora, take_out
from .layer import LoRALayer, is_packed
from .requantization import Requantized, loss_of, outputs, requantize_base

Layers = Sequence[tuple[str, LoRALayer]]


@overload
def merge(
    model: nn.Module,
    keep_base: bool = True,
    *,
    onto: str | nn.Module | None = None,
    requantize: Literal[False] = False,
    inputs: Tensor | None = None,
) -> nn.Module: ...
@overload
def merge(
    model: nn.Module,
    keep_base: bool = True,
    *,
    onto: str | nn.Module | None = None,
    requantize: Literal[True],
    inputs: Tensor | None = None,
) -> Requantized: ...
def merge(
    model: nn.Module,
    keep_base: bool = True,
    *,
    onto: str | nn.Module | None = None,
    requantize: bool = False,
    inputs: Tensor | None = None,
) -> nn.Module | Requantized:
    """Write ``W0 + ΔW`` into every adapted Linear, in place; ``unmerge`` gives W0 back to the bit. Returns the model.

    ``keep_base=False`` drops W0 and so needs no second copy of the weights: for deployment. On a base in four bits say
    ``onto="dequantized"``, or ``onto=`` the float model that was quantized: each adapted Linear becomes a float one.
    ``requantize=True`` puts the sum (by default onto the dequantized base) back into four bits and returns what was lost;
    with ``inputs`` for the model, also by how much its outputs moved. Raises ``ValueError``, changing nothing, without
    adapters, when merged already, in training mode with dropout, when a sum is not finite, or ``onto`` missing or unfit.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> merge(model)[0]
    LoRALayer(4 -> 2, r=1, scaling=16, merged)
    """
    layers = require_lora(model)
    for name, layer in layers:
        explain(name, layer.check_mergeable)
    bases = bases_to_merge_onto(layers, "dequantized" if requantize and onto is None else onto)
    weights = [explain(name, layer.merged_weight, bases.get(name)) for name, layer in layers]
    if requantize:
        return merge_requantized(model, layers, weights, keep_base, inputs)
    put_all(layers, weights, keep_base)
    return model


def put_all(layers: Layers, weights: Sequence[Tensor], keep_base: bool) -> None:
    """Put merged weights in place: into the Linear that is there, or in four bits as a float Linear in its stead."""
    for (_, layer), weight in zip(layers, weights, strict=True):
        if is_packed(layer.base):
            layer.put_base(plain_linear(weight, layer.bias).train(layer.training), keep_base)
        else:
            layer.put_merged(weight, keep_base)


def bases_to_merge_onto(layers: Layers, onto: str | nn.Module | None) -> dict[str, Tensor]:
    """Float weights by module path that ΔW is to be added to, where the caller chose the original ones; {} otherwise."""
    packed = [(name, layer) for name, layer in layers if is_packed(layer.base)]
    if onto is not None and not packed:
        raise ValueError(
            "onto and requantize are for a base in four bits; this one is in floats: merge(model) is all it needs"
        )
    if packed and onto is None:
        raise ValueError(
            f"{packed[0][0]} is in four bits, where most of ΔW would be rounded away. Say onto='dequantized' (the model then "
            "computes what it does now) or onto=original, the float model that was quantized; or requantize=True, which "
            "reports what is lost. Nothing was changed"
        )
    check_onto(onto)
    return original_weights(onto, dict(packed)) if isinstance(onto, nn.Module) else {}


def check_onto(onto: str | nn.Module | None) -> None:
    """Raise ``ValueError`` unless this is a way to merge."""
    if not isinstance(onto, nn.Module | None) and onto != "dequantized":
        raise ValueError(
            f"onto must be 'dequantized' or the original float model, got {onto!r}. Nothing was changed"
        )


def original_weights(original: nn.Module, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The float weights of a model's Linears of these names; one ``ValueError`` for all that are missing or do not fit."""
    modules, found, wrong = dict(original.named_modules()), {}, []
    for name, layer in wanted.items():
        weight = getattr(modules.get(name), "weight", None)
        shape = (layer.out_features, layer.in_features)
        if weight is None or is_packed(modules[name]) or isinstance(modules[name], LoRALayer):
            wrong.append(f"{name} is no float Linear there")
        elif tuple(weight.shape) != shape:
            wrong.append(f"{name} has shape {tuple(weight.shape)} there, needed {shape}")
        else:
            found[name] = weight.detach()
    if wrong:
        raise ValueError(f"onto does not fit this model: {listed(wrong)}. Nothing was changed")
    return found


@torch.no_grad()
def merge_requantized(
    model: nn.Module,
    layers: Layers,
    weights: Sequence[Tensor],
    keep_base: bool,
    inputs: Tensor | None,
) -> Requantized:
    """Put merged weights back into four bits, in the way their bases are, and measure what that lost."""
    packed = [
        (name, layer, weight)
        for (name, layer), weight in zip(layers, weights, strict=True)
        if is_packed(layer.base)
    ]
    bases = [explain(name, requantize_base, layer, weight) for name, layer, weight in packed]
    losses = tuple(
        loss_of(name, layer, weight, base)
        for (name, layer, weight), base in zip(packed, bases, strict=True)
    )
    wanted = None
    if inputs is not None:  # what the model computes with the sums in floats
        put_all(layers, weights, keep_base=True)
        try:
            wanted = outputs(model, inputs)
        finally:
            unmerge(model)
    put_all(layers, weights, keep_base)
    for (_, layer, _), base in zip(packed, bases, strict=True):
        layer.base = base
    moved = (
        None
        if wanted is None
        else ((outputs(model, inputs) - wanted).norm() / wanted.norm()).item()
    )
    return Requantized(losses, moved)


def unmerge(model: nn.Module) -> nn.Module:
    """Give every Linear its W0 back, to the bit. Raises ``ValueError``, changing nothing, when one has none.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> before, _ = model[0].weight.clone(), inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> _ = nn.init.ones_(model[0].lora_B)
    >>> torch.equal(merge(model)[0].weight, before), torch.equal(unmerge(model)[0].weight, before)
    (False, True)
    """
    layers = require_lora(model)
    for name, layer in layers:
        explain(name, layer.check_unmergeable)
    for _, layer in layers:
        layer.unmerge()
    return model


def merge_and_unload(model: nn.Module, *, onto: str | nn.Module | None = None) -> nn.Module:
    """Merge, then take the adapters out: an ordinary model again, in place. Merged models are just taken out of their wraps.

    With ``onto`` (for a base in four bits, see ``merge``) the Linears without adapters become floats too. Raises what
    ``merge`` raises, changing nothing.

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
    adapted = dict(require_lora(model))
    for name, layer in adapted.items():
        explain(name, layer.check_enabled)
    inside = {f"{name}.base" for name in adapted}
    rest: dict[str, Any] = (
        {name: m for name, m in model.named_modules() if is_packed(m) and name not in inside}
        if onto
        else {}
    )
    originals = original_weights(onto, rest) if isinstance(onto, nn.Module) else {}
    if not all(layer.merged for layer in adapted.values()):
        merge(model, keep_base=False, onto=onto)
    take_out(model)
    for name, layer in rest.items():
        weight = (
            originals[name].to(layer.packed.device, layer.dtype, copy=True)
            if name in originals
            else layer.weight
        )
        model.set_submodule(name, plain_linear(weight, layer.bias).train(layer.training))
    return model


def explain(name: str, action: Any, *arguments: Any) -> Any:
    """Run a layer's check and put the layer's path into its error."""
    try:
        return action(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Nothing was changed") from error


class LowRank(NamedTuple):
    """One module's update ``scaling · B A``: A (r, in), B (out, r)."""

    A: Tensor
    B: Tensor
    scaling: float


def low_rank_parts(model: nn.Module) -> dict[str, LowRank]:
    """Copies of every adapter's factors, by module path. Raises ``ValueError`` when there are none.

    >>> model = nn.Sequential(LoRALayer(nn.Linear(4, 2), r=1))
    >>> low_rank_parts(model)["0"].A.shape
    torch.Size([1, 4])
    """
    return {
        name: LowRank(layer.lora_A.detach().clone(), layer.lora_B.detach().clone(), layer.scaling)
        for name, layer in require_lora(model)
    }


def combine(
    adapters: Sequence[Mapping[str, LowRank]], weights: Sequence[float] | None = None
) -> dict[str, LowRank]:
    """``Σ weightᵢ · ΔWᵢ`` for every module, exactly, as one adapter with scaling 1 and rank Σ rᵢ.

    Modules that only some adapters have keep those. ``low_rank_parts(model)`` has a model's factors in this form. Raises
    ``ValueError`` on no adapter, another count of weights than of adapters, weights that are not finite, or shapes that do
    not fit.

    >>> one = LowRank(torch.ones(1, 2), torch.ones(3, 1), scaling=2.0)
    >>> both = combine([{"q": one}, {"q": one}], [0.5, 1.0])["q"]
    >>> both.A.shape, (both.scaling * both.B @ both.A)[0, 0].item()
    (torch.Size([2, 2]), 3.0)
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(weights) != len(adapters):
        raise ValueError(
            f"combine needs adapters and one weight for each, got {len(adapters)} adapters and {len(weights)} weights"
        )
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise ValueError(f"combine needs finite weights, got {bad[0]}")
    combined = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter):
        parts = [
            (weight, adapter[name])
            for weight, adapter in zip(weights, adapters, strict=True)
            if name in adapter
        ]
        shapes = {(part.A.shape[1], part.B.shape[0]) for _, part in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"{name}: these adapters were made for Linears of different (in, out): {sorted(shapes)}"
            )
        A = torch.cat([part.A for _, part in parts])  # (Σ r, in)
        B = torch.cat([weight * part.scaling * part.B for weight, part in parts], dim=1)
        combined[name] = LowRank(A, B, 1.0)
    return combined
