"""How many numbers does a task need? Train through d random knobs (the intrinsic dimension).

    θ = θ0 + s ⊙ z[h]        θ (D,)   z (d,), trained, zero at first
                             h (D,)   the knob that each weight listens to, at random
                             s (D,)   ±1, at random
    ∂L/∂z_k = Σ over h_i = k of s_i ∂L/∂θ_i

Li et al. 2018 (arXiv 1804.08838) ask for which d a random subspace reaches 90% of full training;
Aghajanyan et al. 2020 (arXiv 2012.13255) ask it of fine-tuning. They project with dense matrices,
sparse ones or Fastfood. Here each weight listens to one knob: the columns are orthogonal, as no two
knobs share a weight, and it costs O(D).

Left out: buffers, the layer-wise scaling of Aghajanyan's SAID.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Knobs(nn.Module):
    """A parametrization: a frozen weight, plus the knobs that its entries listen to, ±1 each."""

    which: Tensor
    signs: Tensor

    def __init__(self, z: nn.Parameter, shape: torch.Size, generator: torch.Generator):
        super().__init__()
        self.z = z
        which = torch.randint(len(z), shape, generator=generator)
        signs = torch.randint(2, shape, generator=generator) * 2 - 1
        self.register_buffer("which", which.to(z.device), persistent=False)
        self.register_buffer("signs", signs.to(z), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.signs * self.z[self.which]).to(weight.dtype)


def install_knobs(model: nn.Module, d: int, seed: int = 0) -> nn.Parameter:
    """Freeze a model and let all its parameters listen to ``d`` knobs; returns the knobs z (d,).

    ``train`` then trains z alone. Until z moves the model computes what it did, to the bit. A
    parameter that two modules share has one set of knobs. ``fix_knobs`` makes an ordinary model of
    it. Raises ``ValueError`` for ``d`` below 1, or above the number of parameters.

    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> z = install_knobs(model, d=4)
    >>> [name for name, p in model.named_parameters() if p.requires_grad], tuple(z.shape)
    (['0.parametrizations.weight.0.z'], (4,))
    """
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    if not 1 <= d <= total:
        raise ValueError(f"d must be from 1 to the model's {total:,} parameters, got {d}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    z = nn.Parameter(torch.zeros(d, device=places[0][2].device))
    shared: dict[int, Any] = {}
    for module, name, parameter in places:
        if id(parameter) not in shared:
            shared[id(parameter)] = Knobs(z, parameter.shape, generator)
        # unsafe: or it would call the new forward once more, for its shape and dtype
        parametrize.register_parametrization(module, name, shared[id(parameter)], unsafe=True)
    return z


@torch.no_grad()
def fix_knobs(model: nn.Module) -> nn.Module:
    """Write what the knobs say into the weights, and take the knobs out. Returns the model.

    Raises ``ValueError`` without knobs.

    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> _ = install_knobs(model, d=4)
    >>> fix_knobs(model)
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    modules = [module for module in model.modules() if parametrize.is_parametrized(module)]
    if not modules:
        raise ValueError("this model has no knobs: call install_knobs(model, d) first")
    # one tensor for each parameter, so that what was shared is shared again
    fixed: dict[int, nn.Parameter] = {}
    for module in modules:
        lists: Any = module.parametrizations
        for name in list(lists):
            original = lists[name].original
            if id(original) not in fixed:
                value = getattr(module, name).detach()
                fixed[id(original)] = nn.Parameter(value, requires_grad=False)
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            setattr(module, name, fixed[id(original)])
    return model
