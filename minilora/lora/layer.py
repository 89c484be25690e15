"""One Linear with one low-rank update beside it.

    y = x W0ᵀ + b + scaling · (x Aᵀ) Bᵀ        W0 (out, in) frozen, A (r, in) and B (out, r) trained
    ΔW = scaling · B A                          scaling = alpha / r

A starts as U(-1/√in, 1/√in) and B as zero, so a new layer computes exactly what its base computes. One zero factor is
enough; two would be a saddle that no gradient leaves: ∂B ∝ A and ∂A ∝ B.

Source: LoRA (arXiv 2106.09685) section 4.1; Kaiming-uniform with a=√5 as in PEFT, which is that bound.

The update is *added into the base's output*, in place: the sum then needs no second (tokens, out) tensor, and that tensor
is most of what an adapter costs. ``AddLowRank`` does so for training too, with a backward derived by hand;
``add_low_rank_plainly`` is the same line as anyone would write it, its oracle in ``tests/lora/test_layer.py``, and what is used where
dtypes differ or where someone else may hold the base's output (``is_fresh``).

A merge keeps the original weight and puts it back on ``unmerge``. It never subtracts: in bf16, W0 + ΔW - ΔW is not W0.

Left out: several adapters in one layer (a matter of serving), embeddings and convolutions, DoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .config import check_alpha, check_dropout, check_rank, check_rslora, scaling_of


class LoRALayer(nn.Module):
    """``base(x) + scaling · (dropout(x) Aᵀ) Bᵀ`` around a frozen Linear, ``NF4Linear`` or transformers' ``Conv1D``.

    A and B are float32 when the base computes in half precision, as in PEFT: small steps vanish in bf16. Raises
    ``ValueError`` or ``TypeError`` for a base that is no Linear and for values that ``LoraConfig`` refuses.

    >>> _ = torch.manual_seed(0)
    >>> layer = LoRALayer(nn.Linear(6, 4), r=2, lora_alpha=4)
    >>> layer
    LoRALayer(6 -> 4, r=2, scaling=2)
    >>> torch.equal(layer(torch.ones(1, 6)), layer.base(torch.ones(1, 6)))
    True
    """

    kept_weight: Tensor | None
    kept_base: nn.Module | None

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
    ):
        super().__init__()
        check_rank(r)
        check_alpha(lora_alpha)
        check_dropout(lora_dropout)
        check_rslora(use_rslora)
        self.in_features, self.out_features = linear_shape(base)
        self.r, self.lora_alpha, self.lora_dropout, self.use_rslora = (
            r,
            lora_alpha,
            lora_dropout,
            use_rslora,
        )
        self.scaling = scaling_of(r, lora_alpha, use_rslora)
        self.base = base
        stored: Any = base.packed if is_packed(base) else base.weight
        dtype: Any = base.dtype if is_packed(base) else stored.dtype
        dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        self.lora_A = nn.Parameter(
            torch.empty(r, self.in_features, dtype=dtype, device=stored.device)
        )
        self.lora_B = nn.Parameter(
            torch.zeros(self.out_features, r, dtype=dtype, device=stored.device)
        )
        self.reset_parameters()
        base.requires_grad_(False)  # last, so that a failure above leaves the base as it was
        self.enabled = True  # False inside disable_adapter(model)
        self.merged = False
        # W0 while merged with keep_base=True; moves along in .to()
        self.register_buffer("kept_weight", None, persistent=False)
        # the same for a base in four bits: the module itself, no part of the state_dict
        self.__dict__["kept_base"] = None

    def reset_parameters(self) -> None:
        """Start over: A uniform within 1/√in, B zero, so that ΔW = 0."""
        # fan-in is the *input* size: A is (r, in), not (in, r)
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        y = self.base(x)
        if self.merged or not self.enabled:
            return y
        if self.training and self.lora_dropout > 0:
            x = F.dropout(x, self.lora_dropout)
        A, B = self.lora_A, self.lora_B
        in_place = is_fresh(self.base) and y.is_contiguous() and x.dtype == y.dtype == A.dtype
        if not in_place or torch.is_autocast_enabled(x.device.type):
            return add_low_rank_plainly(y, x, A, B, self.scaling)
        if torch.is_grad_enabled():
            return AddLowRank.apply(y, x, A, B, self.scaling)
        add_low_rank(y, x, A, B, self.scaling)
        return y

    def delta_weight(self) -> Tensor:
        """``ΔW = scaling · B A``, (out, in), in the adapter's dtype. Its rank is at most r."""
        return self.scaling * (self.lora_B.detach() @ self.lora_A.detach())

    def merged_weight(self, onto: Tensor | None = None) -> Tensor:
        """``W0 + ΔW`` in the base's own layout and dtype, summed in the adapter's dtype before it is rounded; changes nothing.

        ``onto`` is a W0 to take instead of the base's, (out, in). Raises ``ValueError`` when the sum is not finite (a run that
        diverged, or a half-precision overflow).
        """
        weight: Any = self.base.weight if onto is None else onto
        dtype: Any = self.base.dtype if is_packed(self.base) else weight.dtype
        delta = self.delta_weight()
        total = (weight.to(delta) + (delta.T if is_conv1d(self.base) else delta)).to(dtype)
        if not torch.isfinite(total).all():
            raise ValueError(
                f"W0 + ΔW is not finite in {dtype}: the adapter diverged, or its values do not fit this dtype; "
                "train again with a smaller rate, or merge in float32"
            )
        return total

    def merge(self, keep_base: bool = True) -> None:
        """Write ``W0 + ΔW`` into the base. Raises ``ValueError`` where ``check_mergeable`` does, and in 4 bits."""
        if is_packed(self.base):
            raise ValueError(
                "this base is in 4 bits, which would lose most of ΔW: use minilora.merge(model, onto=…), which asks"
            )
        self.check_mergeable()
        self.put_merged(self.merged_weight(), keep_base)

    def check_mergeable(self) -> None:
        """Raise ``ValueError`` where ``merge`` would."""
        self.check_enabled()
        if self.merged:
            raise ValueError(
                "this layer is merged already: a second merge would add ΔW twice; unmerge first"
            )
        if self.training and self.lora_dropout > 0:
            raise ValueError(
                f"merging in training mode with lora_dropout={self.lora_dropout}: what trains now is a random part of the "
                "adapter, what would be merged is all of it; call model.eval() first"
            )

    def check_enabled(self) -> None:
        """Raise ``ValueError`` inside ``disable_adapter``, where W0 is in place whatever was merged."""
        if not self.enabled:
            raise ValueError(
                "this adapter is switched off by disable_adapter: merge and unmerge outside that context"
            )

    def put_merged(self, weight: Tensor, keep_base: bool) -> None:
        """Swap in a weight made by ``merged_weight``. The Parameter object stays the same, its storage is new."""
        parameter: Any = self.base.weight
        self.kept_weight = parameter.data if keep_base else None
        parameter.data = weight
        self.merged = True

    def put_base(self, base: nn.Module, keep_base: bool) -> None:
        """Swap in a whole merged base: how a base in four bits is merged."""
        self.__dict__["kept_base"] = self.base if keep_base else None
        self.base = base
        self.merged = True

    def unmerge(self) -> None:
        """Give W0 back, to the bit. Raises ``ValueError`` when not merged, or merged with ``keep_base=False``."""
        self.check_unmergeable()
        self.swap()
        self.kept_weight, self.__dict__["kept_base"] = None, None
        self.merged = False

    def swap(self) -> None:
        """Exchange what is kept and what is in place: W0 for W0 + ΔW, and back."""
        if self.kept_base is not None:
            kept, now = self.kept_base, self.base
            self.base, self.__dict__["kept_base"] = kept.to(self.lora_A.device), now
        else:
            parameter: Any = self.base.weight
            parameter.data, self.kept_weight = self.kept_weight, parameter.data

    def check_unmergeable(self) -> None:
        """Raise ``ValueError`` where ``unmerge`` would."""
        self.check_enabled()
        if not self.merged:
            raise ValueError("this layer is not merged: there is nothing to take back")
        if self.kept_weight is None and self.kept_base is None:
            raise ValueError(
                "this layer was merged with keep_base=False, so W0 is gone: load the base again"
            )

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models that look at ``linear.weight``; from four bits a float copy, made for this call."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, or None."""
        return getattr(self.base, "bias", None)

    def __repr__(self) -> str:
        state = ", merged" if self.merged else ""
        return f"LoRALayer({self.in_features} -> {self.out_features}, r={self.r}, scaling={self.scaling:g}{state})"


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """Every adapter of a model with its path.

    >>> model = nn.Sequential(LoRALayer(nn.Linear(4, 2), r=1), nn.ReLU())
    >>> [name for name, layer in lora_layers(model)]
    ['0']
    """
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer):
            yield name, module


def add_low_rank_plainly(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``y + scaling · (x Aᵀ) Bᵀ`` as written, in the adapter's precision, rounded to y's dtype; autograd does the rest."""
    return (y + F.linear(F.linear(x.to(A.dtype), A), B) * scaling).to(y.dtype)


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``y += scaling · (x Aᵀ) Bᵀ``, in place, y contiguous; returns ``x Aᵀ``, (…, r)."""
    h = F.linear(x, A)
    y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, len(A)), B.T, alpha=scaling)
    return h


class AddLowRank(torch.autograd.Function):
    """``y += scaling · (x Aᵀ) Bᵀ``, in place, and its gradients by hand.

    With g = ∂L/∂y (tokens, out), h = x Aᵀ (tokens, r) and ∂h = scaling · g B:

        ∂A = ∂hᵀ x        ∂B = scaling · gᵀ h        ∂x = ∂h A        ∂y = g, untouched

    (The chain rule on the equation above; level0.lora_backward is the same in NumPy.)
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        h = add_low_rank(y, x, A, B, scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, A, B, h)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, A, B, h = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])  # (tokens, out)
        dh = (g @ B).mul_(ctx.scaling)  # (tokens, r)
        dA = dh.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[2] else None  # (r, in)
        # (out, r)
        dB = (g.T @ h.reshape(-1, len(A))).mul_(ctx.scaling) if ctx.needs_input_grad[3] else None
        dx = (dh @ A).view(x.shape) if ctx.needs_input_grad[1] else None
        return grad, dx, dA, dB, None


def is_fresh(base: nn.Module) -> bool:
    """Whether the base's output is a new tensor that may be written into: no hook has seen it, and no subclass made it."""
    hooked = base._forward_hooks or base._backward_hooks or base._backward_pre_hooks
    return not hooked and (type(base) is nn.Linear or is_conv1d(base) or is_packed(base))


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' GPT-2 ``Conv1D``: a Linear that stores its weight as (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_packed(module: nn.Module) -> bool:
    """Whether this is a Linear whose weight is kept as codes (``qlora.NF4Linear``): ``weight`` is then a copy."""
    return isinstance(module._buffers.get("packed"), Tensor) and hasattr(module, "out_features")


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can stand beside this module."""
    return isinstance(module, nn.Linear) or is_conv1d(module) or is_packed(module)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear or Conv1D. Raises ``TypeError`` for anything else."""
    if not is_linear(module):
        raise TypeError(
            f"LoRALayer wraps a Linear (or transformers' Conv1D), got {type(module).__name__}: it has no x Wᵀ to add to"
        )
    if is_packed(module):
        return module.in_features, module.out_features  # type: ignore[return-value]
    weight: Any = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        raise TypeError(
            f"this {type(module).__name__} has no plain floating-point weight (it is computed from others, as by weight_norm, "
            "or packed): a merge would be lost; remove the parametrization first"
        )
    out_features, in_features = weight.shape[::-1] if is_conv1d(module) else weight.shape
    return in_features, out_features
