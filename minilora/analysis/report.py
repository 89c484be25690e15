"""What one adapter changed, and where: by layer and by kind of module, as numbers and a picture.

    size         ‖ΔW‖ / ‖W0‖
    directions   effective rank of ΔW, and the share of ‖ΔW‖² in its first direction
    blocks       what each block adds, changed, on the base's own inputs; CKA so far

A size says that something changed, not that it is good: two unrelated random layers differ by more
than any adapter. With ``measure`` the report also says what each part is needed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import AdapterLayer
from ..lora.injection import disable_adapter, require_adapters
from ..lora.linears import weight_of
from ..plots.analysis_charts import adapter_chart
from ..text import columns
from .representations import centered_alignment, contributions_changed, recorded
from .spectra import effective_rank, energy, intruders, singular_values, singular_values_of_product
from .updates import adapter_updates, by_kind, by_layer, is_a_product, layer_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True)
class ModuleChange:
    """One adapted Linear; ``intruders`` is None where it was not asked for."""

    path: str
    relative_norm: float
    singular: Tensor
    intruders: int | None


@dataclass(frozen=True)
class AdapterAnalysis:
    """What an adapter changed. ``written`` and ``similar`` have a value a block.

    ``measured`` is the measure with the whole adapter, without it, and without one part each.
    """

    modules: tuple[ModuleChange, ...]
    written: tuple[float, ...]
    similar: tuple[float, ...]
    measured: Mapping[str, float]

    def __str__(self) -> str:
        return "\n".join([*self.kind_lines(), "", *self.block_lines(), *self.measured_lines()])

    def kind_lines(self) -> list[str]:
        """A line a kind of module, means over its layers."""
        counted = all(module.intruders is not None for module in self.modules)
        head = ("module", "layers", "‖ΔW‖/‖W0‖", "effective rank", "in the first direction")
        rows = [(*head, *(["intruders of 10"] if counted else []))]
        for kind, members in self.kinds().items():
            ranks = mean([effective_rank(each.singular) for each in members])
            first = mean([energy(each.singular, 1) for each in members])
            size = mean([each.relative_norm for each in members])
            row = (kind, f"{len(members)}", f"{size:.2%}", f"{ranks:.1f}", f"{first:.0%}")
            counts = [each.intruders for each in members if each.intruders is not None]
            rows.append((*row, *([f"{mean(counts):.1f}"] if counted else [])))
        return columns(rows)

    def block_lines(self) -> list[str]:
        """A line a block: the size of its updates, what it adds, and CKA so far."""
        sizes: dict[int, list[float]] = {}
        for module in self.modules:
            if (layer := layer_of(module.path)) is not None:
                sizes.setdefault(layer, []).append(module.relative_norm)
        rows = [("block", "‖ΔW‖/‖W0‖", "what it adds changed by", "CKA with the base, so far")]
        for block, (written, similar) in enumerate(zip(self.written, self.similar, strict=True)):
            size = f"{mean(sizes[block]):.2%}" if block in sizes else "–"
            rows.append((str(block), size, f"{written:.0%}", f"{similar:.2f}"))
        return columns(rows)

    def measured_lines(self) -> list[str]:
        """The measure without each part, if there was one."""
        if not self.measured:
            return []
        rows = [("loss", "nats an answer token")]
        rows += [(name, f"{value:.3f}") for name, value in self.measured.items()]
        return ["", *columns(rows)]

    def kinds(self) -> dict[str, list[ModuleChange]]:
        """The modules by kind."""
        modules = {module.path: module for module in self.modules}
        return {kind: [modules[path] for path in paths] for kind, paths in by_kind(modules).items()}

    def figure(self, dark: bool = False) -> Figure:
        """The picture: where, along how many directions, what that does."""
        layers = sorted({layer_of(module.path) or 0 for module in self.modules})
        sizes, spectra = {}, {}
        for kind, members in self.kinds().items():
            by_number = {layer_of(each.path) or 0: each.relative_norm for each in members}
            sizes[kind] = [by_number.get(layer, math.nan) for layer in layers]
            longest = max(len(each.singular) for each in members)
            padded = [
                nn.functional.pad(e.singular, (0, longest - len(e.singular))) for e in members
            ]
            spectra[kind] = torch.stack(padded).mean(0).numpy()
        return adapter_chart(layers, sizes, spectra, self.written, self.similar, dark=dark)


@torch.no_grad()
def analyze(
    model: nn.Module, ids: Tensor, *, count_intruders: bool = False, measure: Measure | None = None
) -> AdapterAnalysis:
    """What the adapters in a model changed; ``ids`` (rows, time) are tokens to look at blocks with.

    - ``count_intruders``: two more SVDs a matrix, minutes on a large base.
    - ``measure``: a number for a model, as its loss; it is taken without each layer's and each kind
      of module's adapters in turn.

    Raises ``ValueError`` without adapters, or when they are merged or switched off.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> for _, layer in minilora.lora_layers(model): _ = nn.init.ones_(layer.lora_B)
    >>> print(analyze(model, torch.arange(9)[None]).kind_lines()[1].split()[:2])
    ['q_proj', '6']
    """
    layers = dict(require_adapters(model))
    for path, layer in layers.items():
        if layer.merged or not layer.enabled:
            raise ValueError(f"{path} is merged or switched off: unmerge, or leave disable_adapter")
    changes = adapter_updates(model)
    modules = [
        module_change(path, layers[path], update, count_intruders)
        for path, update in changes.items()
    ]
    with disable_adapter(model), recorded(model) as (arguments, before):
        model(ids)
    written = contributions_changed(model, arguments, before)
    with recorded(model) as (_, after):
        model(ids)
    similar = [
        centered_alignment(one.flatten(0, 1), other.flatten(0, 1))
        for one, other in zip(before, after, strict=True)
    ]
    measured = {} if measure is None else measured_parts(model, layers, measure)
    return AdapterAnalysis(tuple(modules), tuple(written), tuple(similar), measured)


def module_change(
    path: str, layer: AdapterLayer, update: Tensor, count_intruders: bool
) -> ModuleChange:
    """One adapted Linear's numbers."""
    weight = weight_of(layer.base).float()
    if is_a_product(layer):
        plain = layer.as_lora()
        singular = plain.scaling * singular_values_of_product(plain.lora_B, plain.lora_A)
    else:
        singular = singular_values(update)
    size = (update.norm() / weight.norm()).item()
    number = intruders(weight, update) if count_intruders else None
    return ModuleChange(path, size, singular, number)


def measured_parts(
    model: nn.Module, layers: Mapping[str, AdapterLayer], measure: Measure
) -> dict[str, float]:
    """The measure with the adapter, without it, and without each layer and kind in turn."""
    with disable_adapter(model):
        bare = measure(model)
    measured = {"with the adapter": measure(model), "the base alone": bare}
    parts = {f"without layer {layer}": paths for layer, paths in by_layer(layers).items()}
    parts |= {f"without {kind}": paths for kind, paths in by_kind(layers).items()}
    for name, paths in parts.items():
        with switched_off([layers[path] for path in paths]):
            measured[name] = measure(model)
    return measured


@contextmanager
def switched_off(layers: Sequence[AdapterLayer]) -> Iterator[None]:
    """A context in which these layers are their bases, whatever their method adds to them."""
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def mean(values: list[float] | list[int]) -> float:
    """Their mean."""
    return sum(values) / len(values)
