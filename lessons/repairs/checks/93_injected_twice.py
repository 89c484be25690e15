"""Checker of repair 93. The oracle: a fresh copy of the base with W + s · B A, for each name."""

import copy

import torch
from hypothesis.strategies import integers, lists
from torch import nn

from minilora.learn import Wrong, cases, close

PATHS = ("first", "inner.up", "inner.down", "last")


def small_model(width):
    """Four Linears on two levels."""
    inner = nn.Sequential()
    inner.up, inner.act, inner.down = nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, width)
    model = nn.Sequential()
    model.first, model.inner, model.last = nn.Linear(3, width), inner, nn.Linear(width, 2)
    return model.double()


def with_update(model, adapter):
    """A copy with the update in its weights."""
    copied = copy.deepcopy(model)
    for path, (A, B, scale) in adapter.items():
        copied.get_submodule(path).weight.data += scale * B @ A
    return copied


@cases(
    20,
    first={"width": 4, "order": [0, 1, 0, 2, 2, 3], "seed": 0},
    width=integers(1, 5),
    order=lists(integers(0, 3), min_size=1, max_size=6),
    seed=integers(0, 999),
)
def check_make_hub(answer, width, order, seed):
    """Activate in a random order (3: none), an unknown name, and none at the end."""
    torch.manual_seed(seed)
    model = small_model(width)
    base, x = copy.deepcopy(model), torch.randn(5, 3, dtype=torch.float64)
    adapters = {}
    for number in range(3):
        chosen = [path for i, path in enumerate(PATHS) if (seed >> (3 * number + i) & 1) or i == 3]
        adapters[f"adapter {number}"] = {
            path: (
                torch.randn(2, base.get_submodule(path).in_features).double(),
                torch.randn(base.get_submodule(path).out_features, 2).double(),
                0.5 + number,
            )
            for path in chosen
        }
    hub = answer(model)
    for name, adapter in adapters.items():
        hub.register(name, adapter)
    done = []
    for number in [*order, 3]:
        name = None if number == 3 else f"adapter {number}"
        hub.activate(name)
        done.append(str(number) if name else "none")
        right = with_update(base, adapters.get(name, {}))(x)
        case = f"width {width} after activating {', '.join(done)}"
        exact = {"tolerance": 0} if name is None else {}
        close(model(x), right, what="the outputs", case=case, **exact)
        before = model(x)
        try:
            hub.activate("nobody")
        except KeyError:
            pass
        else:
            raise Wrong(f"{case}: activate('nobody') raised no KeyError; 0 adapters have this name")
        close(model(x), before, what="the outputs after a KeyError", case=case, tolerance=0)


class Adapted(nn.Module):
    """A layer with an update."""

    def __init__(self, base, A, B, scale):
        super().__init__()
        self.base, self.A, self.B, self.scale = base, A, B, scale

    def forward(self, x):
        """The sum."""
        return self.base(x) + self.scale * (x @ self.A.T @ self.B.T)


class Stacks:
    """The script as it circulates."""

    def __init__(self, model):
        self.model, self.adapters = model, {}

    def register(self, name, adapter):
        """Keep it."""
        self.adapters[name] = adapter

    def put(self, path, module):
        """Replace a module."""
        parent, _, leaf = path.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module)

    def inject(self, name):
        """Wrap what is there."""
        for path, factors in ({} if name is None else self.adapters[name]).items():
            self.put(path, Adapted(self.model.get_submodule(path), *factors))

    def activate(self, name):
        """On top of what is there."""
        self.inject(name)


class SkipsWhatIsThere(Stacks):
    """A layer that has an adapter keeps it."""

    def activate(self, name):
        """Wrap only plain layers."""
        for path, factors in ({} if name is None else self.adapters[name]).items():
            if not isinstance(module := self.model.get_submodule(path), Adapted):
                self.put(path, Adapted(module, *factors))


class ReplacesWhatItTouches(Stacks):
    """Layers that only the old adapter had keep it."""

    def activate(self, name):
        """Unwrap the new one's paths."""
        for path in {} if name is None else self.adapters[name]:
            if isinstance(module := self.model.get_submodule(path), Adapted):
                self.put(path, module.base)
        self.inject(name)


class CleansBeforeItLooks(Stacks):
    """An unknown name leaves the base behind."""

    def activate(self, name):
        """Unwrap all, then find out."""
        for path in PATHS:
            if isinstance(module := self.model.get_submodule(path), Adapted):
                self.put(path, module.base)
        self.inject(name)


class AddsAndSubtracts(Stacks):
    """Merges, and takes off by subtraction: the last bits go."""

    active = None

    def activate(self, name):
        """W += s B A, then W -= s B A."""
        new = {} if name is None else self.adapters[name]
        for sign, adapter in ((-1, self.adapters.get(self.active, {})), (1, new)):
            for path, (A, B, scale) in adapter.items():
                self.model.get_submodule(path).weight.data += sign * scale * B @ A
        self.active = name


WRONG = {
    "make_hub": {
        "stacks": Stacks,
        "skips what is there": SkipsWhatIsThere,
        "replaces what it touches": ReplacesWhatItTouches,
        "cleans before it looks": CleansBeforeItLooks,
        "adds and subtracts": AddsAndSubtracts,
    }
}
