"""A second tree of modules around the same weights.

What replaces modules (a bank of adapters, several trainings at once) takes a twin, and the model
that it was made from stays as it is. A twin costs no memory worth counting. A weight that is
changed in place changes in both.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def twin(model: Model) -> Model:
    """Copies of all modules, with the same parameters, buffers and tokenizer.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> other = twin(model)
    >>> other[0] is model[0], other[0].weight is model[0].weight
    (False, True)
    """
    shared: list[Any] = [*model.parameters(), *model.buffers()]
    shared += [getattr(module, "tokenizer", None) for module in model.modules()]
    return copy.deepcopy(model, {id(each): each for each in shared})
