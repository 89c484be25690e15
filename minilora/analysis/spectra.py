"""How many directions does an update use? Its singular values, and what stays when it is cut.

    ΔW = Σᵢ σᵢ uᵢ vᵢᵀ        σ₁ ≥ σ₂ ≥ …
    energy(k)       = σ₁² + … + σₖ²  over  Σ σᵢ²
    effective rank  = exp(−Σ pᵢ log pᵢ),  pᵢ = σᵢ / Σ σ        (Roy and Vetterli 2007)

A number alone says little: compare it with a random matrix of the shape and with W0. And energy is
not function: cut the update (``cut``, ``without_top``), and measure the model again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """σ₁ ≥ σ₂ ≥ … of a matrix (out, in), in float64.

    >>> singular_values(torch.diag(torch.tensor([1.0, -3.0]))).tolist()
    [3.0, 1.0]
    """
    return torch.linalg.svdvals(matrix.double())


def singular_values_of_product(B: Tensor, A: Tensor) -> Tensor:
    """The singular values of ``B A``, at most r of them, without making the product.

    With ``B = Q₁ R₁`` and ``Aᵀ = Q₂ R₂``, ``B A = Q₁ (R₁ R₂ᵀ) Q₂ᵀ``: an SVD of r × r.

    >>> singular_values_of_product(2 * torch.ones(3, 1), torch.ones(1, 4)).round(decimals=4).item()
    6.9282
    """
    R1, R2 = (torch.linalg.qr(each.detach().double())[1] for each in (B, A.T))
    return torch.linalg.svdvals(R1 @ R2.T)


def effective_rank(singular: Tensor) -> float:
    """exp of the entropy of σ / Σσ: n for n equal values, 1 for a single one, 0 for none.

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    if not singular.any():
        return 0.0
    shares = singular[singular > 0] / singular.sum()
    return torch.exp(-(shares * shares.log()).sum()).item()


def energy(singular: Tensor, k: int) -> float:
    """The share of ‖ΔW‖² in the ``k`` largest singular values, 0 to 1; 0 of no update.

    >>> round(energy(torch.tensor([2.0, 1.0]), 1), 6)
    0.8
    """
    squares = singular.square()
    return (squares[:k].sum() / squares.sum()).item() if squares.any() else 0.0


def random_update(like: Tensor, seed: int = 0) -> Tensor:
    """Gaussian noise of the shape and the norm of an update: what *no* structure looks like.

    >>> random_update(torch.ones(2, 2)).norm().item()
    2.0
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(like.shape, generator=generator)
    return (noise * (like.norm().cpu() / noise.norm())).to(like)


def cut(update: Tensor, k: int) -> Tensor:
    """The nearest matrix of rank ``k`` or less (Eckart and Young 1936); 0 gives zeros.

    >>> cut(torch.diag(torch.tensor([3.0, 1.0])), 1).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    U, S, Vh = torch.linalg.svd(update.float(), full_matrices=False)
    return (U[:, :k] * S[:k]) @ Vh[:k]


def without_top(update: Tensor, k: int) -> Tensor:
    """The update without its ``k`` strongest directions.

    >>> without_top(torch.diag(torch.tensor([3.0, 1.0])), 1).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    return update.float() - cut(update, k)


def intruders(weight: Tensor, update: Tensor, top: int = 10, threshold: float = 0.6) -> int:
    """Intruder directions among the ``top`` of ``W0 + ΔW``: those that W0 has none like.

    A left singular vector intrudes if its |cosine| to *every* one of W0's is below ``threshold``.
    (LoRA vs full fine-tuning, arXiv 2410.21228; the threshold is ours.)

    >>> base = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> intruders(base, 0.1 * base, top=2), intruders(base, 9 * torch.ones(3, 3), top=1)
    (0, 1)
    """
    old = torch.linalg.svd(weight.float(), full_matrices=False)[0]  # (out, rank)
    new = torch.linalg.svd((weight + update).float(), full_matrices=False)[0][:, :top]
    return int(((new.T @ old).abs().amax(1) < threshold).sum())


def cosine(one: Tensor, other: Tensor) -> float:
    """⟨A, B⟩ / ‖A‖ ‖B‖ of two updates; 0 when either is zero. In n dimensions, chance is ±1/√n.

    >>> cosine(torch.eye(2), 3 * torch.eye(2)), cosine(torch.eye(2), torch.zeros(2, 2))
    (1.0, 0.0)
    """
    norms = (one.double().norm() * other.double().norm()).item()
    return (one.double() * other.double()).sum().item() / norms if norms else 0.0
