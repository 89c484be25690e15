# %% [markdown]
# # 93 · Repair: a hub that injects into an injected model
#
# Know first: lesson 20 · Difficulty ●●○ · 4 minutes to read · 5 seconds to run
#
# One base, many adapters, and a hub that switches between them. A demo goes well: the first adapter
# answers as it should. The second nearly does. The tenth is a mixture of ten.


# %% [exercise] make_hub
import torch
from torch import nn


class Adapted(nn.Module):
    """A layer with a low-rank update beside it."""

    def __init__(self, base, A, B, scale):
        super().__init__()
        self.base, self.A, self.B, self.scale = base, A, B, scale

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A.T @ self.B.T)


class AdapterHub:
    """Adapters by name, of which one is active in the model."""

    def __init__(self, model):
        self.model, self.adapters = model, {}

    def register(self, name, adapter):
        self.adapters[name] = adapter

    def activate(self, name):
        for path, (A, B, scale) in self.adapters[name].items():
            parent, _, leaf = path.rpartition(".")
            module = self.model.get_submodule(path)
            setattr(self.model.get_submodule(parent), leaf, Adapted(module, A, B, scale))


def make_hub(model):
    """A hub with register(name, adapter) and activate(name).

    An adapter is {path of a Linear in model: (A (r, in), B (out, r), scale)}. After activate(name)
    the model computes the base with that adapter and no other; after activate(None) the base alone,
    to the bit. A name that was never registered raises KeyError, and the model stays as it was.
    """
    return AdapterHub(model)


# %% [markdown]
# Two adapters, then the first again:

# %%
from minilora.learn import check

torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(4, 6)
hub = make_hub(model)
for name, path, size_out in (("legal", "0", 6), ("naval", "2", 3)):
    hub.register(name, {path: (torch.randn(2, 6), torch.randn(size_out, 2), 0.5)})
outputs = []
for name in ("legal", "naval", "legal"):
    hub.activate(name)
    outputs.append(model(x).detach())
drift = float((outputs[2] - outputs[0]).norm() / outputs[0].norm())
print(f"the same adapter, asked twice: the outputs differ by {drift:.0%} of their size")
print(model)
assert drift > 0.05

# %% [hints] make_hub
# 1. Look at the model that was printed. Which layers still carry an adapter that is not active?
# 2. Take all updates off before you put one on. The base's layer is in `Adapted.base`; the paths of
#    what you have put on must be kept somewhere.
# 3. In activate: first `adapter = {} if name is None else self.adapters[name]`, which may raise;
#    then put `module.base` back for each path in `self.active`; then inject, and set
#    `self.active = list(adapter)`.

# %%
check(make_hub)

# %% [markdown]
# `minilora.inject` raises an error on a model that has adapters, and `swap_adapter` replaces what
# is there, or raises and changes nothing.
