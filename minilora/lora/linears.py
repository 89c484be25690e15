"""What an adapter can stand beside, behind one set of questions: three Linears, and an Embedding.

    nn.Linear              weight (out, in)
    NF4Linear              the same in four bits; its ``weight`` is a float copy
    transformers' Conv1D   weight (in, out): GPT-2's Linear
    nn.Embedding           weight (in, out): a Linear of one-hot rows, in = tokens, out = dimensions

Everywhere else a weight is (out, in).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..nf4.linear import NF4Linear, plain_linear


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 has sharded over several ranks, gathered; any other as it is.

    All ranks must ask for it together.
    """
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is torch's DTensor, which is not loaded for its name alone."""
    return hasattr(tensor, "full_tensor")


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can stand beside this module."""
    return isinstance(module, nn.Linear | NF4Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' ``Conv1D``.

    It is recognised by its looks, because transformers may not be installed.
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_norm(module: nn.Module) -> bool:
    """Whether this is a norm with a weight an element: LayerNorm, or any model's own RMSNorm."""
    own = module._parameters
    known = own.keys() <= {"weight", "bias"} and own.get("weight") is not None
    return known and own["weight"].dim() == 1 and not module._modules  # type: ignore[union-attr]


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear. Raises ``TypeError`` for anything else."""
    if not is_linear(module):
        raise TypeError(
            f"expected a Linear (or transformers' Conv1D), got {type(module).__name__}: "
            "it has no x Wᵀ to add to"
        )
    if isinstance(module, NF4Linear):
        return module.in_features, module.out_features
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        raise TypeError(
            f"this {type(module).__name__} has no plain floating-point weight (it is computed from "
            "others, as by weight_norm, or packed): a merge would be lost; remove the "
            "parametrization first"
        )
    out_features, in_features = weight.shape[::-1] if is_conv1d(module) else weight.shape
    return in_features, out_features


def embedding_shape(module: nn.Module) -> tuple[int, int]:
    """(tokens, dimensions) of an Embedding. Raises ``TypeError`` for anything else.

    >>> embedding_shape(nn.Embedding(10, 4))
    (10, 4)
    """
    if not isinstance(module, nn.Embedding):
        raise TypeError(f"expected an Embedding, got {type(module).__name__}")
    if type(module).forward is not nn.Embedding.forward or module.max_norm is not None:
        raise TypeError(
            f"this {type(module).__name__} computes more than a row of its table (it scales or "
            "renormalizes), which an adapter beside it would pass by"
        )
    return module.num_embeddings, module.embedding_dim


def is_transposed(base: nn.Module) -> bool:
    """Whether a weight is stored as (in, out)."""
    return is_conv1d(base) or isinstance(base, nn.Embedding)


def weight_of(base: Any) -> Tensor:
    """The weight of a Linear, (out, in), without a gradient; of four bits a float copy."""
    weight: Tensor = base.weight.detach()
    return weight.T if is_transposed(base) else weight


def dtype_of(base: Any) -> torch.dtype:
    """The dtype of a Linear's weight; of four bits the one that it dequantizes to."""
    return base.dtype if isinstance(base, NF4Linear) else base.weight.dtype


def device_of(base: Any) -> torch.device:
    """Where a Linear's weight is stored."""
    stored: Tensor = base.packed if isinstance(base, NF4Linear) else base.weight  # type: ignore[assignment]
    return stored.device


def made_beside(base: Any) -> dict[str, Any]:
    """dtype and device of what trains beside a Linear; float32 beside half precision.

    Small steps vanish in bf16.
    """
    half = dtype_of(base) in (torch.float16, torch.bfloat16)
    return {"dtype": torch.float32 if half else dtype_of(base), "device": device_of(base)}


def with_weight(base: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A frozen twin of a Linear (or norm) with another weight (out, in) and bias.

    The Linear stays as it is. The twin has the same class, hooks and attributes; that of an
    ``NF4Linear`` is an ``nn.Linear``.
    """
    if isinstance(base, NF4Linear):
        return plain_linear(weight, bias).train(base.training)
    twin: Any = copy.copy(base)
    twin._parameters = dict(base._parameters)  # its own, or the Linear would change along
    stored = weight.T.contiguous() if is_transposed(base) else weight
    twin.weight = nn.Parameter(stored, requires_grad=False)
    if bias is not getattr(base, "bias", None):
        twin.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return twin


def exchange(one: Any, other: Any) -> None:
    """Exchange the weights and biases of two bases in floats; each keeps its Parameter objects."""
    one.weight.data, other.weight.data = other.weight.data, one.weight.data
    bias = getattr(one, "bias", None)  # a norm may not know the word
    if bias is not getattr(other, "bias", None):
        one.bias, other.bias = other.bias, bias
