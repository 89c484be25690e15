"""Weights that somebody else uses too: tied to another module, or read without a call.

Quantizing such a Linear, or merging an adapter into it, would change two things where one was
meant; an adapter beside a Linear that is never called would be passed by. And a subclass whose
forward is more than the product would lose the rest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

STORED = ("weight", "packed")  # the tensor that holds a Linear's weight, in floats or in four bits


def tied_weights(model: nn.Module) -> dict[str, list[str]]:
    """For each module, by its path, whose weight other names of the model share: those names.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    >>> model[1].weight = model[0].weight
    >>> tied_weights(model)["1"]
    ['0.weight']
    """
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    owners: dict[int, list[str]] = {}
    for name, tensor in named:
        owners.setdefault(id(tensor), []).append(name)
    tied = {}
    for name, tensor in named:
        path, _, key = name.rpartition(".")
        others = sorted(other for other in owners[id(tensor)] if other != name)
        if key in STORED and others:
            tied[path] = others
    return tied


def reads_weights(parent: nn.Module | None) -> bool:
    """Whether a module reads its Linears' weights instead of calling them: torch's attention."""
    return isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer)


@torch.no_grad()
def is_product(linear: nn.Linear) -> bool:
    """Whether ``linear(x)`` is x Wᵀ + b; a subclass with a forward of its own is tried on one x.

    >>> is_product(nn.Linear(4, 2))
    True
    """
    if type(linear).forward is nn.Linear.forward:
        return True
    x = torch.linspace(-1, 1, linear.in_features).to(linear.weight)[None]
    y = F.linear(x, linear.weight, linear.bias)
    return torch.allclose(type(linear).forward(linear, x), y, rtol=1e-2, atol=1e-3)


def check_replaceable(name: str, module: Any) -> None:
    """Raise ``ValueError`` for a Linear that does more than x Wᵀ + b, which would be lost."""
    more = ""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        more = "it has hooks, or a forward that was replaced"
    elif not is_product(module):
        more = f"the forward of {type(module).__name__} is not x Wᵀ + b"
    if more:
        raise ValueError(f"{name}: {more}, and that would be lost: add {name!r} to skip")
