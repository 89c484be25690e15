"""Several adapters as one: added exactly, cut to a rank, or mixed by PEFT's other rules.

    cat              B = [w₁s₁B₁ … wₙsₙBₙ], A = [A₁; …; Aₙ]       ΔW = Σ wᵢ ΔWᵢ, exactly; rank Σ rᵢ
    svd              the best of rank r to Σ wᵢ ΔWᵢ               (Eckart and Young 1936)
    linear           B = Σ √|wᵢsᵢ| Bᵢ, A = Σ ±√|wᵢsᵢ| Aᵢ          small, and not the sum: see below
    magnitude_prune  as linear, of each factor's largest entries
    dare_linear      as linear, of entries kept at random, over the share that is kept
                     (DARE, arXiv 2311.03099 section 3.2)
    ties, dare_ties  after that each entry elects a sign, and only those that have it are averaged
                     (TIES, arXiv 2306.01708 algorithm 1)
    …_svd            the same rule on the products ΔWᵢ, which is what its paper means, then ``svd``

The names, and the numbers, are those of ``combination_type`` in PEFT's ``add_weighted_adapter``.
The rules without ``_svd`` mix A with A and B with B. Their product has cross-terms Bᵢ Aⱼ that no
adapter ever learnt (huggingface/peft #3004), so ``cat`` is the default here.

One number of PEFT's is not ours. Of rsLoRA adapters 0.21.2 makes one that is √r too strong: it
folds the scales into the factors, sets α = r, which means a scale of 1, and keeps ``use_rslora``,
under which it means √r (huggingface/peft #3449, #3761). Here the result has the scale 1.

The result goes into a model by ``swap_adapter`` and into a folder by ``formats.combine_folders``.
Left out: svd_clamp, convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..text import did_you_mean
from .injection import require_adapters
from .merging import with_path
from .trained_copies import trained_copies

RULES = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")
HOWS = ("cat", "svd", *RULES, *(f"{rule}_svd" for rule in RULES[1:]))
SIGNS = ("total", "frequency")


class LowRank(NamedTuple):
    """One module's update ``scaling · B A``: A (r, in), B (out, r).

    >>> part = LowRank(torch.ones(1, 3), torch.ones(2, 1), 0.5)
    >>> (part.scaling * part.B @ part.A).shape
    torch.Size([2, 3])
    """

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True)
class Mixing:
    """How entries are mixed: the rule, and its settings. ``generator`` draws for DARE."""

    rule: str
    density: float
    majority_sign_method: str
    generator: torch.Generator


def low_rank_parts(model: nn.Module) -> dict[str, LowRank]:
    """Copies of every adapter's factors, by module path.

    Raises ``ValueError`` when there are none, when an update is not a product (DoRA's, say), and
    when whole Parameters or token rows train too.

    >>> from minilora import LoRALayer
    >>> model = nn.Sequential(LoRALayer(nn.Linear(4, 2), r=1))
    >>> low_rank_parts(model)["0"].A.shape
    torch.Size([1, 4])
    """
    plain = {path: with_path(path, layer.as_lora) for path, layer in require_adapters(model)}
    if whole := [*trained_copies(model)]:
        raise ValueError(
            f"{whole[0]} trains too, which is not a product of low rank: "
            "low_rank_parts is for A and B of Linears alone"
        )
    return {
        path: LowRank(layer.lora_A.detach().clone(), layer.lora_B.detach().clone(), layer.scaling)
        for path, layer in plain.items()
    }


@torch.no_grad()
def combine(
    adapters: Sequence[Mapping[str, LowRank]],
    weights: Sequence[float] | None = None,
    how: str = "cat",
    *,
    svd_rank: int | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    seed: int = 0,
) -> dict[str, LowRank]:
    """Several adapters as one with scaling 1, module by module; ``cat`` adds them exactly.

    ``low_rank_parts(model)`` has a model's factors in this form. Modules that only some adapters
    have keep those.

    - ``weights``: one for each adapter, of either sign (default: all 1).
    - ``how``: see the top of ``lora/combining.py``; only ``cat`` and ``svd`` combine the updates
      themselves.
    - ``svd_rank``: the rank for ``svd`` and ``…_svd`` (default: the largest of the adapters').
    - ``density``: the share of entries that ``ties``, ``dare_…`` and ``magnitude_prune`` keep, in
      (0, 1]; they need it.
    - ``majority_sign_method``: TIES elects the sign of the sum (``total``) or of the more
      (``frequency``).
    - ``seed``: fixes what DARE drops.

    Raises ``ValueError`` on no adapter, another count of weights than of adapters, weights that are
    not finite, shapes that do not fit, ranks that differ where factors are mixed, an unknown
    ``how``, or a setting that is missing or of no use.

    >>> one = LowRank(torch.ones(1, 2), torch.ones(3, 1), scaling=2.0)
    >>> both = combine([{"q": one}, {"q": one}], [0.5, 1.0])["q"]
    >>> both.A.shape, (both.scaling * both.B @ both.A)[0, 0].item()
    (torch.Size([2, 2]), 3.0)
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    check_weights(len(adapters), weights)
    mixing = mixing_of(how, svd_rank, density, majority_sign_method, seed)
    combined = {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter):
        weighted = zip(weights, adapters, strict=True)
        parts = [(weight, adapter[path]) for weight, adapter in weighted if path in adapter]
        check_shapes(path, [part for _, part in parts], same_rank=how in RULES)
        if how == "cat":
            combined[path] = side_by_side(parts)
        elif how in RULES:
            combined[path] = mixed_factors(parts, mixing)
        else:
            rank = svd_rank or max(len(part.A) for _, part in parts)
            combined[path] = cut_to_rank(mixed_updates(parts, mixing), rank)
    return combined


def side_by_side(parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    """``Σ wᵢ sᵢ Bᵢ Aᵢ`` as one product: the factors beside each other, no cross-terms."""
    A = torch.cat([part.A for _, part in parts])  # (Σ r, in)
    B = torch.cat([weight * part.scaling * part.B for weight, part in parts], dim=1)  # (out, Σ r)
    return LowRank(A, B, 1.0)


def mixed_factors(parts: Sequence[tuple[float, LowRank]], mixing: Mixing) -> LowRank:
    """A mixed with A, B with B, as PEFT does; the root of each weight goes to either side."""
    scales = [weight * part.scaling for weight, part in parts]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    A = mixed([part.A for _, part in parts], signed, mixing)  # the sign on one side only
    B = mixed([part.B for _, part in parts], roots, mixing)
    return LowRank(A, B, 1.0)


def mixed_updates(parts: Sequence[tuple[float, LowRank]], mixing: Mixing) -> Tensor:
    """The products ΔWᵢ mixed, (out, in)."""
    updates = [part.scaling * (part.B @ part.A) for _, part in parts]
    return mixed(updates, [weight for weight, _ in parts], mixing)


def mixed(tensors: Sequence[Tensor], weights: Sequence[float], mixing: Mixing) -> Tensor:
    """``Σ wᵢ tᵢ`` of what a rule keeps of each tensor; TIES' mean over the elected sign."""
    if mixing.rule.startswith("dare"):
        kept = [drop_at_random(tensor, mixing.density, mixing.generator) for tensor in tensors]
    elif mixing.rule == "linear":
        kept = list(tensors)
    else:
        kept = [keep_largest(tensor, mixing.density) for tensor in tensors]
    stacked = torch.stack(kept)  # (adapters, …)
    factors = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
    weighted = stacked * factors.view(-1, 1, 1)
    if not mixing.rule.endswith("ties"):
        return weighted.sum(0)
    agree = has_elected_sign(stacked, mixing.majority_sign_method)
    return (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """TIES' trim: the share of entries that are largest in magnitude; the others become 0."""
    count = int(density * tensor.numel())
    mask = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    mask[tensor.abs().flatten().topk(count).indices] = 1
    return tensor * mask.view_as(tensor)


def drop_at_random(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE: keep each entry with probability ``density``, and divide by it: the mean stays."""
    keep = torch.bernoulli(torch.full(tensor.shape, density), generator=generator)
    return tensor * keep.to(tensor) / density


def has_elected_sign(stacked: Tensor, method: str) -> Tensor:
    """Whether each entry (adapters, …) has the sign that its column elects; zeros never do.

    >>> columns = torch.tensor([[3.0, 1.0], [-1.0, 0.0], [-1.0, -2.0]])
    >>> has_elected_sign(columns, "total").tolist()
    [[True, False], [False, False], [False, True]]
    """
    votes = stacked if method == "total" else stacked.sign()
    elected = torch.where(votes.sum(0) >= 0, 1, -1)
    return stacked.sign() == elected


def cut_to_rank(update: Tensor, rank: int) -> LowRank:
    """The nearest update (out, in) of rank at most ``rank``, as factors ``(U S)(Vᵀ)``.

    >>> cut_to_rank(torch.diag(torch.tensor([3.0, 2.0])), 1).B.abs().tolist()
    [[3.0], [0.0]]
    """
    wide = update if update.dtype == torch.float64 else update.float()  # no SVD in half precision
    U, S, Vh = torch.linalg.svd(wide, full_matrices=False)
    A, B = Vh[:rank].contiguous(), (U * S)[:, :rank].contiguous()
    return LowRank(A.to(update.dtype), B.to(update.dtype), 1.0)


def mixing_of(
    how: str, svd_rank: int | None, density: float | None, majority_sign_method: str, seed: int
) -> Mixing:
    """The settings, checked: each one that ``how`` needs, and none that it does not use."""
    if how not in HOWS:
        hint = did_you_mean(how, HOWS, f"known are {', '.join(HOWS)}")
        raise ValueError(f"combine has no how={how!r}: {hint}")
    rule = how.removesuffix("_svd") if how != "svd" else "linear"
    prunes = rule not in ("cat", "linear")
    if prunes and not is_share(density):
        share = "the share of entries to keep, as 0.5"
        raise ValueError(f"how={how!r} needs a density in (0, 1], {share}; got {density!r}")
    if not prunes and density is not None:
        raise ValueError(f"how={how!r} keeps every entry, so it takes no density; got {density!r}")
    if svd_rank is not None and not how.endswith("svd"):
        raise ValueError(f"svd_rank is for svd and its kin, got svd_rank={svd_rank} for {how!r}")
    if svd_rank is not None and svd_rank < 1:
        raise ValueError(f"svd_rank must be at least 1, got {svd_rank}")
    if majority_sign_method not in SIGNS:
        known = " or ".join(map(repr, SIGNS))
        raise ValueError(f"majority_sign_method must be {known}, got {majority_sign_method!r}")
    return Mixing(rule, density or 1.0, majority_sign_method, torch.Generator().manual_seed(seed))


def is_share(value: Any) -> bool:
    """Whether a value is a number in (0, 1]."""
    return isinstance(value, int | float) and 0 < value <= 1


def check_weights(adapters: int, weights: Sequence[float]) -> None:
    """Raise ``ValueError`` unless there are adapters and a finite weight for each."""
    if not adapters or adapters != len(weights):
        raise ValueError(
            "combine needs adapters and one weight for each, "
            f"got {adapters} adapters and {len(weights)} weights"
        )
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise ValueError(f"combine needs finite weights, got {bad[0]}")


def check_shapes(path: str, parts: Sequence[LowRank], same_rank: bool) -> None:
    """Raise ``ValueError`` unless the factors are of one Linear, and of one rank if they must."""
    shapes = {(part.A.shape[1], part.B.shape[0]) for part in parts}
    if len(shapes) > 1:
        different = f"Linears of different (in, out): {sorted(shapes)}"
        raise ValueError(f"{path}: these adapters were made for {different}")
    ranks = sorted({len(part.A) for part in parts})
    if same_rank and len(ranks) > 1:
        raise ValueError(
            f"{path}: these adapters have the ranks {ranks}, and factors can only be mixed when "
            "they are equal: take how='cat', 'svd' or one that ends in _svd"
        )
