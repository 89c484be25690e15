"""Checker of repair 91. The oracle: the layer as it was given, and x Aᵀ Bᵀ in NumPy."""

import copy

import torch
from hypothesis.strategies import booleans, floats, integers
from torch import nn

from minilora.learn import Wrong, cases, close


@cases(
    20,
    first={"size_in": 5, "size_out": 3, "r": 2, "alpha": 5.0, "bias": True, "seed": 0},
    size_in=integers(2, 6),
    size_out=integers(1, 5),
    r=integers(1, 4),
    alpha=floats(0.5, 16),
    bias=booleans(),
    seed=integers(0, 999),
)
def check_adapted_linear(answer, size_in, size_out, r, alpha, bias, seed):
    """At the start the layer's output; then steps; then the update by itself and the rest."""
    torch.manual_seed(seed)
    linear = nn.Linear(size_in, size_out, bias=bias)
    original, x = copy.deepcopy(linear), torch.randn(7, size_in)
    layer = answer(linear, r, alpha)
    case = f"{size_in} to {size_out}, r = {r}, alpha = {alpha:.3g}, bias {bias}"
    parameters = dict(layer.named_parameters())
    if missing := {"lora_A", "lora_B"} - set(parameters):
        raise Wrong(f"{case}: the module has no parameter {' and '.join(sorted(missing))}")
    check_start(parameters["lora_A"], parameters["lora_B"], (r, size_in), (size_out, r), case)
    close(layer(x), original(x), what="the output before training", case=case)
    learning = sorted(name for name, p in parameters.items() if p.requires_grad)
    if learning != ["lora_A", "lora_B"]:
        raise Wrong(f"{case}: {len(learning)} parameters learn, {learning}, expected 2")
    optimizer = torch.optim.Adam([p for p in parameters.values() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) - 3).square().mean().backward()
        optimizer.step()
    A, B = (parameters[name].detach().double().numpy() for name in ("lora_A", "lora_B"))
    if not B.any():
        raise Wrong(f"{case}: after 3 steps lora_B is still zero everywhere")
    right = original(x).detach().double().numpy() + alpha / r * (x.double().numpy() @ A.T @ B.T)
    what = "the output after 3 steps"
    close(layer(x), right, what=what, case=case, tolerance=1e-4)


def check_start(A, B, shape_A, shape_B, case):
    """Shapes; A random, B zero."""
    for name, factor, shape in (("lora_A", A, shape_A), ("lora_B", B, shape_B)):
        if tuple(factor.shape) != shape:
            raise Wrong(f"{case}: {name} is {tuple(factor.shape)}, a right answer has {shape}")
    if B.any():
        raise Wrong(f"{case}: at first lora_B is up to {B.abs().max():.2g}, expected 0 everywhere")
    if len(A.unique()) < 2:
        raise Wrong(f"{case}: all of lora_A is {A.flatten()[0]:.2g}, expected random numbers")


class Layer(nn.Module):
    """The layer with faults to be switched on."""

    def __init__(self, linear, r, alpha, frozen="all", scale=None):
        super().__init__()
        self.linear = linear
        for name, parameter in linear.named_parameters():
            parameter.requires_grad_(frozen not in ("all", name))
        self.lora_A = nn.Parameter(torch.randn(r, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r))
        self.scale = alpha / r if scale is None else scale

    def forward(self, x):
        """The sum."""
        return self.linear(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


class ZeroA(Layer):
    """The zeros are in the wrong factor."""

    def __init__(self, linear, r, alpha):
        super().__init__(linear, r, alpha)
        self.lora_A.data, self.lora_B.data = self.lora_A.data * 0, torch.randn_like(self.lora_B)


class TwiceTheRank(Layer):
    """Another rank, with the scale of the right one."""

    def __init__(self, linear, r, alpha):
        super().__init__(linear, 2 * r, alpha, scale=alpha / r)


class WithoutBias(Layer):
    """The bias does not learn, because it is gone."""

    def forward(self, x):
        """The sum, without the bias."""
        return x @ self.linear.weight.T + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


class FrozenByDetach(Layer):
    """Nothing behind the layer learns, its own update neither."""

    def forward(self, x):
        """The sum, cut off."""
        update = self.scale * (x @ self.lora_A.T @ self.lora_B.T)
        return self.linear(x) + update.detach() + 0 * (self.lora_A.sum() + self.lora_B.sum())


WRONG = {
    "adapted_linear": {
        "the bias trains": lambda linear, r, alpha: Layer(linear, r, alpha, frozen="weight"),
        "the weight trains": lambda linear, r, alpha: Layer(linear, r, alpha, frozen="bias"),
        "nothing is frozen": lambda linear, r, alpha: Layer(linear, r, alpha, frozen="none"),
        "unscaled": lambda linear, r, alpha: Layer(linear, r, alpha, scale=1.0),
        "alpha alone": lambda linear, r, alpha: Layer(linear, r, alpha, scale=alpha),
        "A is zero, not B": ZeroA,
        "twice the rank": TwiceTheRank,
        "the bias is left out": WithoutBias,
        "the update is detached": FrozenByDetach,
    }
}
