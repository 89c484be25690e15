"""Parameters that are trained whole: a head that starts at random, biases.

An adapter's file must hold them, and its base must come back to the bit. So the original Parameter
is set aside, frozen, and a copy of it is trained in its place:

    in place   copy          original (inside disable_adapter)
    aside      original      copy

No wrapper is needed: the module keeps its class, its path and its attributes. PEFT wraps the
module instead (``ModulesToSaveWrapper``) and trains biases in the base itself, so its
``disable_adapter`` leaves them changed, with a warning. Here both come back.

``unload`` puts the originals back; a merge for good (``keep_base=False``, ``merge_and_unload``)
forgets them, and the copies are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from .adapter_layer import adapter_layers
from .paths import named_modules, unwrapped


class TrainedCopy(NamedTuple):
    """One Parameter: where it is used, as (module, attribute), and its two forms."""

    owners: tuple[tuple[nn.Module, str], ...]
    original: nn.Parameter
    copy: nn.Parameter

    def put(self, parameter: nn.Parameter) -> None:
        """Put one of the two in place; it gets the other's dtype and device."""
        other = self.original if parameter is self.copy else self.copy
        parameter.data = parameter.data.to(other)
        for module, attribute in self.owners:
            setattr(module, attribute, parameter)


Copies = dict[str, TrainedCopy]


def owners_of(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every Parameter of a model under its plain name without adapters, tied ones each time.

    >>> sorted(owners_of(nn.Sequential(nn.Linear(2, 1))))
    ['0.bias', '0.weight']
    """
    layers = dict(adapter_layers(model))
    owners = {}
    for path, module in named_modules(model, remove_duplicate=False):
        if path not in layers:
            outside = path.removesuffix(".base")
            name = outside if outside in layers else path
            for attribute in module._parameters:
                if module._parameters[attribute] is not None:
                    owners[f"{name}.{attribute}".lstrip(".")] = (module, attribute)
    return owners


def make_copies(model: nn.Module, names: Iterable[str]) -> Copies:
    """A copy for each named Parameter, tied ones one for all; changes nothing yet."""
    owners, copies, known = owners_of(model), Copies(), {}
    by_parameter: dict[int, list[tuple[nn.Module, str]]] = {}
    for module, attribute in owners.values():
        by_parameter.setdefault(id(getattr(module, attribute)), []).append((module, attribute))
    for name in names:
        original: nn.Parameter = getattr(*owners[name])
        if id(original) not in known:
            copy = nn.Parameter(original.detach().clone())
            known[id(original)] = TrainedCopy(tuple(by_parameter[id(original)]), original, copy)
        copies[name] = known[id(original)]
    return copies


def trained_copies(model: nn.Module) -> Copies:
    """The copies of a model by their Parameters' names; empty when it has none."""
    copies = Copies()
    for path, module in named_modules(model):  # inject may have been called on a part of the model
        own: Any = getattr(module, "_trained_copies", {})
        copies |= {f"{path}.{name}".lstrip("."): trained for name, trained in own.items()}
    return copies


def put_copies(model: nn.Module, copies: Copies) -> None:
    """Put copies in place, and remember the originals."""
    if copies:
        unwrapped(model)._trained_copies = copies  # type: ignore[assignment]
        switch_copies(model, on=True)


def switch_copies(model: nn.Module, on: bool) -> None:
    """Put the copies in place, or the originals."""
    for trained in trained_copies(model).values():
        trained.put(trained.copy if on else trained.original)


def forget_copies(model: nn.Module) -> None:
    """Drop whatever is set aside: what is in place is the model's own from now on."""
    for trained in trained_copies(model).values():
        trained.copy.requires_grad_(trained.original.requires_grad)
    for _, module in named_modules(model):
        if hasattr(module, "_trained_copies"):
            del module._trained_copies
