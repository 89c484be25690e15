"""Weights that somebody else uses too: tied to another module, or read without a call.

Quantizing such a Linear, or merging an adapter into it, would change two things where one was
meant; an adapter beside a Linear that is never called would be passed by.
"""

from __future__ import annotations

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
