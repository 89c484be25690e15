"""One Linear with one low-rank update beside it.

    y = x W0ᵀ + b + scaling · (x Aᵀ) Bᵀ        W0 (out, in) frozen, A (r, in) and B (out, r) trained
    ΔW = scaling · B A                          scaling = alpha / r

A starts as U(-1/√in, 1/√in) and B as zero, so a new layer computes exactly what its base computes.
One zero factor is enough; two would be a saddle that no gradient leaves: ∂B ∝ A and ∂A ∝ B.

Source: LoRA (arXiv 2106.09685) section 4.1; that bound is Kaiming-uniform with a=√5, as in PEFT.

The fast path adds the update *into the base's output*, in place: the sum then needs no second
(tokens, out) tensor, and that tensor is most of what an adapter costs. ``AddLowRank`` does so for
training too, with a backward derived by hand, and ``BaseAndLowRank`` where both read the same x.
That is right only while nobody else holds the base's output: watchers.py knows who might.
``add_low_rank_plainly`` is the equation as written: the oracle in tests/lora/test_layer.py, and the
path for every other case.

With few values (one token's row) the second tensor is small, and calls are what an adapter costs:
``add_few`` makes two, which is less than asking whose the output is. benchmarks/forward.py compares
it with loralib and PEFT.

Left out: several adapters in one layer (a matter of serving), embeddings and convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nf4.linear import FrozenProduct, NF4Linear
from .adapter_layer import AdapterLayer
from .hyperparameters import check_all, scaling_of
from .linears import made_beside, weight_of
from .paths import named_modules
from .watchers import can_share, is_ours_alone

FEW = 1 << 14  # values of y: below, a second tensor costs less than asking whose the first one is


class LoRALayer(AdapterLayer):
    """``base(x) + scaling · (dropout(x) Aᵀ) Bᵀ`` around a frozen Linear, NF4Linear or Conv1D.

    A and B are float32 when the base computes in half precision, as in PEFT: small steps vanish in
    bf16. Raises ``TypeError`` for a base that is not a Linear, ``ValueError`` or ``TypeError`` for
    values that ``LoraConfig`` refuses.

    >>> _ = torch.manual_seed(0)
    >>> layer = LoRALayer(nn.Linear(6, 4), r=2, lora_alpha=4)
    >>> layer
    LoRALayer(6 -> 4, r=2, scaling=2)
    >>> torch.equal(layer(torch.ones(1, 6)), layer.base(torch.ones(1, 6)))
    True
    """

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
    ):
        check_all(r, lora_alpha, lora_dropout, use_rslora)
        super().__init__(base)
        self.r, self.lora_alpha = r, lora_alpha
        self.lora_dropout, self.use_rslora = lora_dropout, use_rslora
        self.scaling = scaling_of(r, lora_alpha, use_rslora)
        made = made_beside(base)
        self.lora_A = nn.Parameter(torch.empty(r, self.in_features, **made))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, **made))
        self.reset_parameters()
        base.requires_grad_(False)  # last, so that a failure above leaves the base as it was

    def reset_parameters(self) -> None:
        """Start over: A uniform within 1/√in, B zero, so that ΔW = 0."""
        # fan-in is the *input* size: A is (r, in), not (in, r)
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = base(x) + scaling · (dropout(x) Aᵀ) Bᵀ``: (…, in) to (…, out)."""
        factors = self._parameters  # faster than self.lora_A, which asks three dicts
        A: Tensor = factors["lora_A"]  # type: ignore[assignment]
        B: Tensor = factors["lora_B"]  # type: ignore[assignment]
        drops = self.training and self.lora_dropout > 0
        few, trains = is_small(x, self.in_features, self.out_features), torch.is_grad_enabled()
        if trains and not few and not drops and x.dtype == A.dtype and can_share(base, x):
            return BaseAndLowRank.apply(base, x, A, B, self.scaling)
        y = base(x)
        if drops:
            x = F.dropout(x, self.lora_dropout)
        if x.dtype == y.dtype == A.dtype:
            if few:
                return add_few(y, x, A, B, self.scaling)
            if is_ours_alone(base, y):
                return add_low_rank(y, x, A, B, self.scaling)
        return add_low_rank_plainly(y, x, A, B, self.scaling)

    def tensors(self) -> dict[str, Tensor]:
        """A and B, by PEFT's names."""
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def as_lora(self) -> LoRALayer:
        """This layer as plain LoRA, for files and sums; a variant answers for itself."""
        return self

    def delta_weight(self) -> Tensor:
        """``ΔW = scaling · B A``, (out, in), in the adapter's dtype. Its rank is at most r."""
        return self.scaling * (self.lora_B.detach() @ self.lora_A.detach())

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``W0 + ΔW``, summed in the adapter's dtype; the bias stays."""
        delta = self.delta_weight()
        return weight.to(delta) + delta, bias

    def check_mergeable(self) -> None:
        """Raise ``ValueError`` where ``merge`` would, in training mode with dropout too."""
        super().check_mergeable()
        if self.training and self.lora_dropout > 0:
            raise ValueError(
                f"merging in training mode with lora_dropout={self.lora_dropout}: training drops a "
                "random part of the adapter's inputs, a merge takes all of it; "
                "call model.eval() first"
            )

    def __repr__(self) -> str:
        sizes = f"{self.in_features} -> {self.out_features}, r={self.r}, scaling={self.scaling:g}"
        dropout = f", dropout={self.lora_dropout:g}" if self.lora_dropout else ""
        return f"LoRALayer({sizes}{dropout}{', merged' * self.merged})"


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """Every LoRA layer of a model with its path (without the wrappers of training, see paths.py).

    >>> model = nn.Sequential(LoRALayer(nn.Linear(4, 2), r=1), nn.ReLU())
    >>> [name for name, layer in lora_layers(model)]
    ['0']
    """
    for path, module in named_modules(model):
        if isinstance(module, LoRALayer):
            yield path, module


def add_low_rank_plainly(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``y + scaling · (x Aᵀ) Bᵀ`` in the adapter's precision, rounded to y's dtype."""
    return (y + F.linear(F.linear(x.to(A.dtype), A), B) * scaling).to(y.dtype)


def is_small(x: Tensor, inputs: int, outputs: int) -> bool:
    """Whether y has few values, where sizes are numbers: a trace or a compiler keeps them open."""
    open_sizes = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not open_sizes and x.numel() * outputs <= FEW * inputs


def add_few(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``y + scaling · (x Aᵀ) Bᵀ`` in two calls, for so few rows that calls are what it costs."""
    h = F.linear(x, A)  # (…, r)
    if y.dim() == 2:
        return torch.addmm(y, h, B.T, alpha=scaling)
    rows = y.reshape(-1, B.shape[0]), h.reshape(-1, B.shape[1])
    return torch.addmm(*rows, B.T, alpha=scaling).view(y.shape)


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``y += scaling · (x Aᵀ) Bᵀ``, in place; y contiguous, and nobody else's. Returns y."""
    if torch.is_grad_enabled():
        return AddLowRank.apply(y, x, A, B, scaling)
    add_product(y, F.linear(x, A), B, scaling)
    return y


def add_product(y: Tensor, h: Tensor, B: Tensor, scaling: float) -> None:
    """``y += scaling · h Bᵀ`` in one call of the BLAS: y (…, out), h (…, r), B (out, r)."""
    y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), B.T, alpha=scaling)


class AddLowRank(torch.autograd.Function):
    """``y += scaling · (x Aᵀ) Bᵀ``, in place, and its gradients by hand.

    With g = ∂L/∂y (tokens, out), h = x Aᵀ (tokens, r) and ∂h = scaling · g B:

        ∂A = ∂hᵀ x        ∂B = scaling · gᵀ h        ∂x = ∂h A        ∂y = g, untouched

    (The chain rule on the equation above; level0.lora_backward is the same in NumPy.) The backward
    is made of differentiable operations, so it has derivatives of its own; for those h is computed
    again from x and A, since a saved h would be a constant to them.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        h = F.linear(x, A)
        add_product(y, h, B, scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, A, B, h)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, A, B, h = ctx.saved_tensors
        dh, dA, dB = gradients_of_factors(ctx, grad, x, A, B, h)
        dx = (dh @ A).view(x.shape) if ctx.needs_input_grad[1] else None  # (…, in)
        return grad, dx, dA, dB, None


class BaseAndLowRank(torch.autograd.Function):
    """``base(x) + scaling · (x Aᵀ) Bᵀ`` of a frozen base, with one gradient of x for both.

        ∂x = ∂y W0 + ∂h A

    Autograd would make a tensor of each, and add them up. (A and B: as above.)
    """

    @staticmethod
    def forward(
        ctx: Any, base: nn.Module, x: Tensor, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        four_bits = isinstance(base, NF4Linear)  # which the backward dequantizes again
        ctx.quantized = base.quantized if four_bits else None
        y = FrozenProduct.apply(x, base.bias, ctx.quantized) if four_bits else base(x)
        h = F.linear(x, A)
        add_product(y, h, B, scaling)
        ctx.save_for_backward(x, A, B, h, None if four_bits else weight_of(base))
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, A, B, h, W0 = ctx.saved_tensors
        dh, dA, dB = gradients_of_factors(ctx, grad, x, A, B, h)
        dx = None
        if ctx.needs_input_grad[1]:
            W0 = ctx.quantized.dequantize(grad.dtype) if W0 is None else W0
            dx = (grad.reshape(-1, grad.shape[-1]) @ W0).addmm_(dh, A).view(x.shape)  # (…, in)
        return None, dx, dA, dB, None


def gradients_of_factors(
    ctx: Any, grad: Tensor, x: Tensor, A: Tensor, B: Tensor, h: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """∂h (tokens, r), and ∂A and ∂B where they are asked for."""
    if torch.is_grad_enabled():  # backward(create_graph=True)
        h = F.linear(x, A)
    g = grad.reshape(-1, grad.shape[-1])  # (tokens, out)
    dh = (g @ B).mul_(ctx.scaling)  # (tokens, r)
    dA = dB = None
    if ctx.needs_input_grad[2]:
        dA = dh.T @ x.reshape(-1, x.shape[-1])  # (r, in)
    if ctx.needs_input_grad[3]:
        # (out, r); gᵀ h itself takes twice as long: BLAS likes its long side last
        dB = (h.reshape(-1, len(A)).T @ g).mul_(ctx.scaling).T
    return dh, dA, dB
