"""What a fine-tune changed: ΔW of every Linear, its size and rank, and its effect on the outputs.

A LoRA leaves changes that are small and of low rank, in the Linears it was given and nowhere else.
``audit`` compares two models and shows whether that is so, whatever made the second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..text import columns, listed
from .adapter_layer import adapter_layers
from .attached import attached_modules
from .layer import LoRALayer
from .linears import is_linear, weight_of
from .paths import named_modules, plain_path
from .requantization import outputs


@dataclass(frozen=True)
class Change:
    """One Linear: ‖ΔW‖/‖W0‖ (Frobenius), the numerical rank of ΔW, the largest rank it can have."""

    name: str
    relative_norm: float
    rank: int
    full_rank: int


@dataclass(frozen=True)
class Audit:
    """What a fine-tune changed.

    ``elsewhere`` names the parameters outside the Linears' weights that changed;
    ``output_difference`` is ‖f(x) − f0(x)‖/‖f0(x)‖ on the given inputs, if any.

    >>> print(Audit((Change("q_proj", 0.05, 8, 128),), (), 0.02))
    module  ‖ΔW‖/‖W0‖  rank of ΔW
    q_proj  0.0500     8 of 128
    outputs differ by 2.00% (‖f(x) − f0(x)‖ / ‖f0(x)‖)
    """

    changes: tuple[Change, ...]
    elsewhere: tuple[str, ...]
    output_difference: float | None

    def __str__(self) -> str:
        rows = [("module", "‖ΔW‖/‖W0‖", "rank of ΔW")]
        for change in self.changes:
            rank = f"{change.rank} of {change.full_rank}"
            rows.append((change.name, f"{change.relative_norm:.4f}", rank))
        lines = columns(rows) if self.changes else ["no Linear changed"]
        if self.elsewhere:
            lines.append(f"changed outside the Linears: {', '.join(self.elsewhere)}")
        if self.output_difference is not None:
            share = f"{100 * self.output_difference:.2f}%"
            lines.append(f"outputs differ by {share} (‖f(x) − f0(x)‖ / ‖f0(x)‖)")
        return "\n".join(lines)


@torch.no_grad()
def audit(before: nn.Module, after: nn.Module, inputs: Tensor | None = None) -> Audit:
    """Compare two models of one architecture: the size, rank and effect of every Linear's ΔW.

    A norm above zero proves nothing: two unrelated random layers differ by about 1.41 ‖W0‖. A LoRA
    leaves changes that are *small and of low rank*, and the outputs say whether they matter. Either
    model may have adapters inside. Raises ``ValueError`` when the two do not have the same Linears.

    >>> a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    >>> _ = b.load_state_dict(a.state_dict())
    >>> _ = b.weight.data.add_(torch.ones(8, 1) @ torch.ones(1, 8))
    >>> audit(nn.Sequential(a), nn.Sequential(b)).changes[0].rank
    1
    """
    old, new = effective_weights(before), effective_weights(after)
    names = sorted(old.keys() | new.keys())
    if differing := [name for name in names if shape_in(old, name) != shape_in(new, name)]:
        shown = listed(differing, 5, ", ")
        raise ValueError(f"audit compares two models of one architecture; these differ: {shown}")
    changes = []
    for name, weight in old.items():
        if not torch.equal(weight, new[name]):
            delta = new[name].float() - weight.float()
            norm = delta.norm().item() / max(weight.float().norm().item(), 1e-30)
            changes.append(Change(name, norm, numerical_rank(delta, new[name]), min(weight.shape)))
    others_old, others_new = other_parameters(before), other_parameters(after)
    others = [*(others_old | others_new)]
    elsewhere = [name for name in others if not same(others_old.get(name), others_new.get(name))]
    difference = None if inputs is None else output_difference(before, after, inputs)
    return Audit(tuple(changes), tuple(elsewhere), difference)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there and equal; a bias that only one model has is a change."""
    return one is not None and other is not None and torch.equal(one, other)


def shape_in(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """A weight's shape, or None when it is not there."""
    return tuple(weights[name].shape) if name in weights else None


def effective_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight (out, in) each Linear really computes with, by its path without adapters."""
    adapted = dict(adapter_layers(model))
    weights = {}
    for path, layer in adapted.items():
        if not is_linear(layer.base):
            continue  # an embedding: other_parameters has it
        active = layer.enabled and not layer.merged
        weights[path] = weight_of(layer.merged_base() if active else layer.base)
    hanging = tuple(f"{path}." for path, _ in attached_modules(model))
    for path, module in named_modules(model):
        own = path.removesuffix(".base") not in adapted and not path.startswith(hanging)
        if is_linear(module) and own:
            weights[path] = weight_of(module)
    return weights


def other_parameters(model: nn.Module) -> dict[str, Tensor]:
    """All but the Linears' weights and the adapters (biases, norms, embeddings), by plain name.

    Of what is attached beside the stream every parameter counts: the base has none of them.
    """
    weights = {id(module.weight) for module in model.modules() if is_linear(module)}
    weights -= {id(p) for _, part in attached_modules(model) for p in part.parameters()}
    adapted = {path: layer for path, layer in adapter_layers(model)}
    own = {id(p) for layer in adapted.values() for p in layer.parameters()}
    own -= {id(p) for layer in adapted.values() for p in layer.base.parameters()}
    names = {f"{path}.base.{n}": f"{path}.{n}" for path in adapted for n in ("weight", "bias")}
    others = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in weights | own:
            plain = plain_path(model, name)
            others[names.get(plain, plain)] = parameter.detach()
    for path, layer in adapted.items():
        if layer.enabled and not layer.merged and not isinstance(layer, LoRALayer):
            effective = dict(layer.merged_base().named_parameters(recurse=False))
            known = {"bias"} if is_linear(layer.base) else {"weight", "bias"}
            others |= {f"{path}.{n}": p.detach() for n, p in effective.items() if n in known}
    return others


def numerical_rank(delta: Tensor, weight: Tensor) -> int:
    """How many singular values of ΔW stand above what rounding leaves behind.

    Rounding ``W0 + ΔW`` to the weight's dtype errs by at most eps/2 · |W| an entry; the largest
    singular value of a matrix of independent errors of standard deviation σ is about σ (√out + √in)
    (Bai and Yin 1993). Rounding the product B A errs by at most about eps · max(out, in) of its
    largest singular value (the usual floor for a rank). Both count twice.
    """
    singular = torch.linalg.svdvals(delta)
    rows, width = delta.shape
    largest_error = torch.finfo(weight.dtype).eps * weight.abs().max().item()
    stored = largest_error * (rows**0.5 + width**0.5)
    computed = 2 * torch.finfo(delta.dtype).eps * max(rows, width) * singular[0].item()
    return int((singular > stored + computed).sum())


def output_difference(before: nn.Module, after: nn.Module, inputs: Tensor) -> float:
    """‖f(x) − f0(x)‖ / ‖f0(x)‖ with dropout off."""
    old, new = outputs(before, inputs), outputs(after, inputs)
    return ((new - old).norm() / old.norm()).item()
