"""One module under one method, ours and PEFT's, with the same numbers.

PEFT in float64 is the truth; ours may err as much as PEFT in the dtype at hand, times
``AS_CLOSE``, and by the last roundings of the terms' size.
"""

import copy
import warnings
from typing import Any

import peft
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import minilora
from minilora.lora.adapter_layer import adapter_layers

from ..strategies import DTYPES, alphas, seeds, sizes
from ..tolerance import AS_CLOSE, unit_roundoff

PREFIX = "base_model.model."


def file_name(name: str) -> str:
    """The name in PEFT's file of a parameter of a PEFT model."""
    name = name.removeprefix(PREFIX).replace(".default", "")
    return name.removesuffix(".weight") if "magnitude" in name else name


def theirs_of(base: nn.Module, config: Any) -> nn.Module:
    """PEFT's model on a copy of a base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(copy.deepcopy(base), config)


@torch.no_grad()
def give(theirs: nn.Module, ours: nn.Module) -> None:
    """Our adapters' numbers to PEFT's; every name must be there."""
    named = {file_name(name): p for name, p in theirs.named_parameters()}
    for path, layer in adapter_layers(ours):
        for name, tensor in layer.tensors().items():
            named[f"{path}.{name}"].copy_(tensor)


@torch.no_grad()
def disturb(model: nn.Module, by: float = 0.3) -> None:
    """Every trained number moved at random, as by training."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=by)


def results(model: nn.Module, x: Tensor, c: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of ``Σ c · y`` by file name."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y * c).sum().backward()
    # beside half precision PEFT's AdaLoRA trains its ranknum too, which its file does not hold
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and "ranknum" not in n]
    grads = {f"d {file_name(n)}": p.grad for n, p in named}
    return {"y": y.detach(), "d x": x.grad, **grads}


def ours_by_file_name(model: nn.Module, x: Tensor, c: Tensor) -> dict[str, Tensor]:
    """``results`` of our model, with its parameters under their names in the file."""
    values = results(model, x, c)
    renamed = {"y": values["y"], "d x": values["d x"]}
    for path, layer in adapter_layers(model):
        for name, tensor in layer.tensors().items():
            renamed[f"d {path}.{name}"] = tensor.grad
    return renamed


def assert_equal_to_peft(ours: nn.Module, theirs: nn.Module, x: Tensor, size: float = 1.0) -> None:
    """Output and every gradient, against PEFT's in the same dtype and in float64."""
    c = torch.randn(ours(x).shape)
    wide = copy.deepcopy(theirs).double()
    mine, peers = ours_by_file_name(ours, x, c.to(x)), results(theirs, x, c.to(x))
    truth = results(wide, x.double(), c.to(x).double())
    assert mine.keys() == truth.keys()
    for name, value in mine.items():
        dtype = x.dtype if name in ("y", "d x") else torch.float32
        u = unit_roundoff(x.dtype) if x.dtype != torch.float32 else unit_roundoff(dtype)
        floor = 4 * AS_CLOSE * u * (truth[name].abs().max().item() + size)
        allowed = AS_CLOSE * largest(peers[name], truth[name]) + floor
        assert largest(value, truth[name]) <= allowed, name


def largest(values: Tensor, truth: Tensor) -> float:
    """The largest difference, in float64."""
    return (values.double() - truth).abs().max().item() if truth.numel() else 0.0


class Holder(nn.Module):
    """A model of one module, ``lin``, so that a path has a name."""

    def __init__(self, lin: nn.Module):
        super().__init__()
        self.lin = lin

    def forward(self, x):
        return self.lin(x)


@st.composite
def bases(draw, dtypes=DTYPES):
    """A model of one Linear, with bias or none, and an input for it."""
    torch.manual_seed(draw(seeds))
    dtype = draw(st.sampled_from(dtypes))
    base = nn.Linear(draw(sizes), draw(sizes), bias=draw(st.booleans())).to(dtype)
    batch = draw(st.sampled_from([(1,), (3,), (2, 5)]))
    return Holder(base), torch.randn(*batch, base.in_features).to(dtype)


def pair(base: nn.Module, config: Any, peft_config: Any, by: float = 0.3):
    """Ours and PEFT's on one base, both as after training, with the same numbers."""
    theirs, ours = theirs_of(base, peft_config), copy.deepcopy(base)
    minilora.inject(ours, config)
    disturb(ours, by)
    give(theirs, ours)
    return ours, theirs


__all__ = ["alphas", "assert_equal_to_peft", "bases", "pair"]
