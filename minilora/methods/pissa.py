"""PiSSA and OLoRA: start A and B from the weight itself instead of from zero.

    PiSSA    W0 = U S Vᵀ      A₀ = √(S_r/s) V_rᵀ     B₀ = U_r √(S_r/s)      (arXiv 2404.02948 §3)
    OLoRA    W0 = Q R         A₀ = R[:r]             B₀ = Q[:, :r]          (arXiv 2406.01775)

    y = base(x) + s (B A − B₀ A₀) x          A and B start as A₀ and B₀

Both papers put the residual W0 − s B₀ A₀ in the base's place, and so does PEFT. Here the base is
left alone and s B₀ A₀ x is taken off instead, in the same precision. So the layer starts as its
base to the bit (PEFT: within 1e-5), ``disable_adapter`` gives the real base, and a frozen weight is
never changed.

It is also the conversion to plain LoRA: [A; A₀] and [B, −B₀] have rank 2 r and the same scaling
when alpha doubles (with rsLoRA: times √2). ``save_adapter`` writes that, and everything reads it. A
folder of PEFT's that says ``init_lora_weights: "pissa"`` holds A and B of the residual base. Read
as plain LoRA it is another model, silently; ``load_adapter`` computes A₀ and B₀ from the base again
and is right when the base is the one that it was trained on.

Trains r (in + out) a Linear, as LoRA. Costs twice LoRA's two products while unmerged.

Left out: the fast randomized SVD (``"pissa_niter_4"``; another A₀ on every machine), CorDA, EVA;
quantizing the residual, for which a base in four bits would have to be replaced.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.layer import LoRALayer
from ..lora.linears import weight_of


class ResidualLoRALayer(LoRALayer):
    """LoRA that starts from the weight's main directions (``start``: "pissa" or "olora").

    Arguments and errors are ``LoRALayer``'s; r may not be above min(in, out).

    >>> _ = torch.manual_seed(0)
    >>> layer, x = ResidualLoRALayer(nn.Linear(6, 4), r=2, start="pissa"), torch.randn(3, 6)
    >>> torch.equal(layer(x), layer.base(x)), layer.lora_B.count_nonzero().item()
    (True, 8)
    """

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        start: str = "pissa",
    ):
        super().__init__(base, r, lora_alpha, lora_dropout, use_rslora)
        if r > min(self.in_features, self.out_features):
            raise ValueError(
                f"{start} takes r directions of the weight: r={r} is above min(in, out) = "
                f"{min(self.in_features, self.out_features)}; lower r"
            )
        self.start = start
        A, B = {"pissa": principal, "olora": orthogonal}[start](weight_of(base), r, self.scaling)
        with torch.no_grad():
            self.lora_A.copy_(A)
            self.lora_B.copy_(B)
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    start_A: Tensor
    start_B: Tensor

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = base(x) + s (B A − B₀ A₀) x``; dropout is on A's input only, as in PEFT."""
        y, x = base(x), x.to(self.lora_A.dtype)
        dropped = F.dropout(x, self.lora_dropout, self.training)
        low = F.linear(F.linear(dropped, self.lora_A), self.lora_B)  # (…, out)
        low = low - F.linear(F.linear(x, self.start_A), self.start_B)
        return (y + low * self.scaling).to(y.dtype)

    def delta_weight(self) -> Tensor:
        """``ΔW = s (B A − B₀ A₀)``, (out, in); its rank is at most 2 r."""
        return super().delta_weight() - self.scaling * (self.start_B @ self.start_A)

    def as_lora(self) -> LoRALayer:
        """The same update as plain LoRA of rank 2 r."""
        alpha = self.lora_alpha * (math.sqrt(2) if self.use_rslora else 2)
        plain = LoRALayer(self.base, 2 * self.r, alpha, self.lora_dropout, self.use_rslora)
        plain.lora_A.data = torch.cat([self.lora_A.detach(), self.start_A])  # (2 r, in)
        plain.lora_B.data = torch.cat([self.lora_B.detach(), -self.start_B], dim=1)  # (out, 2 r)
        return plain

    def __repr__(self) -> str:
        inside = super().__repr__().removeprefix("LoRALayer(")
        return f"ResidualLoRALayer({self.start}, {inside}"


def principal(weight: Tensor, r: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A₀ (r, in) and B₀ (out, r) whose scaled product is the weight's best rank-r approximation.

    >>> A, B = principal(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1, scaling=2.0)
    >>> round((2 * B @ A)[0, 0].item(), 5)
    3.0
    """
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = torch.sqrt(S[:r] / scaling)
    return root[:, None] * Vh[:r], U[:, :r] * root


def orthogonal(weight: Tensor, r: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A₀ = R[:r] (r, in) and B₀ = Q[:, :r] (out, r) of W0 = Q R; the scaling does not enter."""
    Q, R = torch.linalg.qr(weight.float())
    return R[:r].contiguous(), Q[:, :r].contiguous()
