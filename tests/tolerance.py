"""How far apart two computations of the same thing may be, derived from the dtype and the sizes.

A dot product of n terms in floating point with unit roundoff u obeys (Higham, Accuracy and
Stability, 2nd ed., section 3.1)

    |fl(x·y) - x·y| <= γ_n |x|·|y|        γ_n = n u / (1 - n u)

whatever the order of summation, so it holds for every BLAS; kernels that accumulate half precision
in float32 do better. Every further rounding of a result adds one to n. Underflow, which the model
leaves out, adds at most the smallest normal number of the dtype a term.

For a whole model such a bound is useless: each layer multiplies the errors before it by its
condition, and the product of the worst cases is thousands of times the real error. There the
yardstick is measured. ``exactly`` computes the model in float64, and ``assert_as_close`` asks that
ours is as near to it as another float32 computation of the same thing.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilora import dequantize_base


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, dtype: torch.dtype) -> float:
    """γ_n; only meaningful while n u < 1."""
    nu = n * unit_roundoff(dtype)
    assert nu < 0.5, f"{n} terms are too many for {dtype}"
    return nu / (1 - nu)


def magnitude(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """|x| |W|ᵀ + |b| and scaling (|x| |A|ᵀ) |B|ᵀ in float64, the measure of rounding errors."""
    x, W, A, B = (t.detach().double().abs() for t in (x, W, A, B))
    plain = x @ W.T + (0 if bias is None else bias.detach().double().abs())
    return plain, scaling * (x @ A.T) @ B.T


def forward_bound(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Error of a computed LoRA forward, by entry: two products in a row, a scale, two sums."""
    plain, low = magnitude(x, W, A, B, scaling, bias)
    terms = x.shape[-1] + len(A)
    return gamma(terms + 6, dtype) * (plain + low) + terms * torch.finfo(dtype).tiny


def backward_bound(
    g: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, dtype: torch.dtype
) -> Tensor:
    """Error of ∂L/∂x = g W + scaling (g B) A: a forward through the transposed matrices."""
    return forward_bound(g, W.T, B.T, A.T, scaling, None, dtype)


def merged_bound(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Distance of a merged from an unmerged forward: both err, and W0 + ΔW is rounded once more."""
    return 2 * forward_bound(x, W, A, B, scaling, bias, dtype)


AS_CLOSE = 8


class Wider(TorchFunctionMode):
    """Gives float64 for float32, which models ask for in norms, positions and the softmax."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call the function with the wider dtype."""
        function = torch.Tensor.double if function is torch.Tensor.float else function
        named = {name: self.wider(value) for name, value in (kwargs or {}).items()}
        return function(*map(self.wider, args), **named)

    @staticmethod
    def wider(value: Any) -> Any:
        """The dtype float32 becomes float64; any other value stays what it is."""
        return torch.float64 if value is torch.float32 else value


def logits_of(output: Any) -> Tensor:
    """A model's logits: its output, or a field of that."""
    return getattr(output, "logits", output)


def in_float64(model: nn.Module) -> nn.Module:
    """A copy with every float widened, which changes no value.

    A weight in four bits is ``level · scale`` in float32 by its format, and that is widened.
    """
    return dequantize_base(copy.deepcopy(model)).double()


@torch.no_grad()
def exactly(model: nn.Module, *inputs: Tensor, **named: Tensor) -> Tensor:
    """The model's logits in float64 throughout, whose errors are nothing beside float32's."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    named = {name: x.double() if x.is_floating_point() else x for name, x in named.items()}
    model = in_float64(model)
    with Wider():
        logits = logits_of(model(*wide, **named))
    assert logits.dtype == torch.float64
    return logits


def largest_error(ours: Tensor, truth: Tensor) -> float:
    """max |ours - truth|, in float64."""
    return (ours.detach().double() - truth).abs().max().item()


def assert_as_close(ours: Tensor, peers: Tensor | list[Tensor], truth: Tensor) -> None:
    """``ours`` errs at most ``AS_CLOSE`` times as much as ``peers``, the same computed otherwise.

    Both errors are sums of equally many roundings, with other signs. The ratio was 3.3 at most in
    264 pairs of models, adapters and kernels; a wrong scale, a rounding to half precision or a lost
    term is a thousand times off. The floor is a last rounding of the largest value: a peer may hit
    the truth by luck.
    """
    peers = [peers] if isinstance(peers, Tensor) else peers
    allowed = AS_CLOSE * max(largest_error(peer, truth) for peer in peers)
    allowed += AS_CLOSE * unit_roundoff(ours.dtype) * truth.abs().max().item()
    error = largest_error(ours, truth)
    assert error <= allowed, f"off by {error:.3g}, where the peers' error allows {allowed:.3g}"


@torch.no_grad()
def loss_bound(model: nn.Module, ids: Tensor) -> float:
    """How far apart two float32 cross-entropies of a model on ``ids`` may be, in nats a token.

    log Σ exp(z) - z_t moves by twice the largest error of a logit at most; the sum of V
    exponentials errs by γ_V of itself, and so its logarithm by γ_V. The logits' error is measured,
    as in ``assert_as_close``; each of the two computations has it.
    """
    truth, dtype = exactly(model, ids), torch.float32
    logits = 2 * AS_CLOSE * largest_error(logits_of(model(ids)), truth)
    logarithm = gamma(truth.shape[-1] + 4, dtype)
    return 2 * (logits + logarithm + gamma(4, dtype) * truth.abs().max().item())
