"""Fold adapters into the weights, take them out again, add several into one, and show what a fine-tune changed.

    merge     W = W0 + ΔW              one tensor, no extra work at inference
    unmerge   W = W0                   the kept original, to the bit
    combine   ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ       exact, as one adapter of rank Σ rᵢ: stack the factors

Summing the factors instead, (Σ Aᵢ)(Σ Bᵢ), brings cross-terms Bᵢ Aⱼ that no adapter ever learnt
(huggingface/peft #3004); stacking [w₁s₁B₁ … wₙsₙBₙ] [A₁; …; Aₙ] has none.

A model is merged whole or not at all: every new weight is computed and checked before the first one is put in place
(huggingface/peft #3710 is what happens otherwise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .inject import check_container, lora_layers, require_lora, take_out
from .lora import is_conv1d, is_linear
from .match import columns


def merge(model: nn.Module, keep_base: bool = True) -> nn.Module:
    """Write ``W0 + ΔW`` into every adapted Linear, in place; ``unmerge`` gives W0 back to the bit.

    ``keep_base=False`` drops W0 and so needs no second copy of the weights: for deployment. Raises ``ValueError``, changing
    nothing, without adapters, when merged already, in training mode with dropout, or when a sum is not finite.

    >>> from minilora import LoraConfig, inject
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> merge(model)[0]
    LoRALayer(4 -> 2, r=1, scaling=16, merged)
    """
    layers = require_lora(model)
    for name, layer in layers:
        explain(name, layer.check_mergeable)
    weights = [explain(name, layer.merged_weight) for name, layer in layers]
    for (_, layer), weight in zip(layers, weights, strict=True):
        layer.put_merged(weight, keep_base)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Give every Linear its W0 back, to the bit. Raises ``ValueError``, changing nothing, when one has none."""
    layers = require_lora(model)
    for name, layer in layers:
        explain(name, layer.check_unmergeable)
    for _, layer in layers:
        layer.unmerge()
    return model


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Merge, then take the adapters out: an ordinary model again, in place. Merged models are just taken out of their wraps.

    Raises what ``merge`` raises, changing nothing.
    """
    check_container(model)
    if not all(layer.merged for _, layer in require_lora(model)):
        merge(model, keep_base=False)
    take_out(model)
    return model


def explain(name: str, action: Any) -> Any:
    """Run a layer's check and put the layer's path into its error."""
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Nothing was changed") from error


class LowRank(NamedTuple):
    """One module's update ``scaling · B A``: A (r, in), B (out, r)."""

    A: Tensor
    B: Tensor
    scaling: float


def low_rank_parts(model: nn.Module) -> dict[str, LowRank]:
    """Copies of every adapter's factors, by module path."""
    return {
        name: LowRank(layer.lora_A.detach().clone(), layer.lora_B.detach().clone(), layer.scaling)
        for name, layer in require_lora(model)
    }


def combine(adapters: Sequence[Mapping[str, LowRank]], weights: Sequence[float] | None = None) -> dict[str, LowRank]:
    """``Σ weightᵢ · ΔWᵢ`` for every module, exactly, as one adapter with scaling 1 and rank Σ rᵢ.

    Modules that only some adapters have keep those. Raises ``ValueError`` on no adapter, another count of weights than of
    adapters, or shapes that do not fit.

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
    combined = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter):
        parts = [(weight, adapter[name]) for weight, adapter in zip(weights, adapters, strict=True) if name in adapter]
        shapes = {(part.A.shape[1], part.B.shape[0]) for _, part in parts}
        if len(shapes) > 1:
            raise ValueError(f"{name}: these adapters were made for Linears of different (in, out): {sorted(shapes)}")
        A = torch.cat([part.A for _, part in parts])  # (Σ r, in)
        B = torch.cat([weight * part.scaling * part.B for weight, part in parts], dim=1)  # (out, Σ r)
        combined[name] = LowRank(A, B, 1.0)
    return combined


@dataclass(frozen=True)
class Change:
    """What happened to one Linear: ‖ΔW‖/‖W0‖ (Frobenius), numerical rank of ΔW, largest rank it could have."""

    name: str
    relative_norm: float
    rank: int
    full_rank: int


@dataclass(frozen=True)
class Audit:
    """What a fine-tune changed; ``output_difference`` is ‖f(x) − f0(x)‖/‖f0(x)‖ on the given inputs, if any."""

    changes: tuple[Change, ...]
    elsewhere: tuple[str, ...]
    output_difference: float | None

    def __str__(self) -> str:
        rows = [("module", "‖ΔW‖/‖W0‖", "rank of ΔW")]
        rows += [(c.name, f"{c.relative_norm:.4f}", f"{c.rank} of {c.full_rank}") for c in self.changes]
        lines = columns(rows) if self.changes else ["no Linear changed"]
        if self.elsewhere:
            lines.append(f"changed outside the Linears: {', '.join(self.elsewhere)}")
        if self.output_difference is not None:
            lines.append(f"outputs differ by {100 * self.output_difference:.2f}% (‖f(x) − f0(x)‖ / ‖f0(x)‖)")
        return "\n".join(lines)


@torch.no_grad()
def audit(before: nn.Module, after: nn.Module, inputs: Tensor | None = None) -> Audit:
    """Compare two models of one architecture, Linear by Linear: how large ΔW is, of what rank, what the outputs do.

    A norm above zero proves nothing: two unrelated random layers differ by about 1.41 ‖W0‖. What a LoRA leaves is
    *small and of low rank*, and the outputs say whether it matters. Either model may have adapters inside.
    Raises ``ValueError`` when the two do not have the same Linears.

    >>> a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    >>> _ = b.load_state_dict(a.state_dict())
    >>> _ = b.weight.data.add_(torch.ones(8, 1) @ torch.ones(1, 8))
    >>> audit(nn.Sequential(a), nn.Sequential(b)).changes[0].rank
    1
    """
    old, new = effective_weights(before), effective_weights(after)
    if differs := sorted(name for name in old.keys() | new.keys() if shape_in(old, name) != shape_in(new, name)):
        raise ValueError(f"audit compares two models of one architecture; these differ: {', '.join(differs[:5])}")
    changes = []
    for name, weight in old.items():
        if not torch.equal(weight, new[name]):
            delta = new[name].float() - weight.float()
            norm = delta.norm().item() / max(weight.float().norm().item(), 1e-30)
            changes.append(Change(name, norm, numerical_rank(delta, new[name]), min(weight.shape)))
    others_old, others_new = other_parameters(before), other_parameters(after)
    elsewhere = tuple(n for n in others_old if n in others_new and not torch.equal(others_old[n], others_new[n]))
    return Audit(tuple(changes), elsewhere, None if inputs is None else output_difference(before, after, inputs))


def shape_in(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """A weight's shape, or None when it is not there."""
    return tuple(weights[name].shape) if name in weights else None


def effective_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight each Linear really computes with, (out, in), adapters included, by the path it has without them."""
    adapted = dict(lora_layers(model))
    found = {}
    for name, layer in adapted.items():
        active = not layer.merged and layer.enabled
        weight = layer.merged_weight() if active else layer.weight.detach()
        found[name] = weight.T if is_conv1d(layer.base) else weight
    for name, module in model.named_modules():
        if is_linear(module) and name.removesuffix(".base") not in adapted:
            plain: Any = module.weight
            found[name] = plain.detach().T if is_conv1d(module) else plain.detach()
    return found


def other_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is no Linear's weight and no adapter (biases, norms, embeddings), by the name without adapters."""
    linear = {id(module.weight) for module in model.modules() if is_linear(module)}
    biases = {f"{name}.base.bias": f"{name}.bias" for name, _ in lora_layers(model)}
    factors = {f"{name}.{factor}" for name, _ in lora_layers(model) for factor in ("lora_A", "lora_B")}
    return {
        biases.get(name, name): p.detach()
        for name, p in model.named_parameters()
        if id(p) not in linear and name not in factors
    }


def numerical_rank(delta: Tensor, weight: Tensor) -> int:
    """Singular values of ΔW that stand above what rounding leaves behind.

    Rounding ``W0 + ΔW`` to the weight's dtype errs by at most eps/2 · |W| an entry; as a matrix of independent errors of
    standard deviation σ its largest singular value is about σ (√out + √in) (Bai and Yin 1993). Rounding the product B A errs by
    about eps · max(out, in) of its largest singular value at most (the usual floor for a rank). Both count twice.
    """
    singular = torch.linalg.svdvals(delta)
    stored = torch.finfo(weight.dtype).eps * weight.abs().max().item() * (delta.shape[0] ** 0.5 + delta.shape[1] ** 0.5)
    computed = 2 * torch.finfo(delta.dtype).eps * max(delta.shape) * singular[0].item()
    return int((singular > stored + computed).sum())


def output_difference(before: nn.Module, after: nn.Module, inputs: Tensor) -> float:
    """‖f(x) − f0(x)‖ / ‖f0(x)‖ with dropout off."""

    def outputs(model: nn.Module) -> Tensor:
        was_training = model.training
        result = model.eval()(inputs)
        model.train(was_training)
        return getattr(result, "logits", result).float()

    old, new = outputs(before), outputs(after)
    return ((new - old).norm() / old.norm()).item()
