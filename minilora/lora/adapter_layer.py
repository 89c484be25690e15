"""What every adapted Linear has: a frozen base, a switch, and a merge that can be taken back.

    unmerged   y = adapt(base, x)     the method beside the base
    merged     y = base'(x)           base' = base with fold(W0, b) in place of (W0, b)
    disabled   y = base(x)

A method is two functions, ``adapt`` and ``fold``; LoRA's are in layer.py. This class owns the rest.
What training and files ask besides has an answer here that suits most methods: ``tensors``,
``neutral``, ``training_state``, ``extra_loss``, ``update_and_allocate``.
A merge makes a twin of the base with the folded weight, and exchanges the two; ``unmerge``
exchanges them back. It never subtracts: in bf16, W0 + ΔW − ΔW is not W0. A float base keeps its
place, its hooks and its Parameters, and only their values change; a base in four bits makes room
for its twin.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nf4.linear import NF4Linear
from ..nf4.shared_weights import is_product
from .linears import dtype_of, exchange, linear_shape, weight_of, with_weight
from .paths import named_modules


class AdapterLayer(nn.Module):
    """A Linear, ``NF4Linear`` or ``Conv1D`` with a method beside it, which a subclass defines.

    ``shape_of`` gives a base's (in, out); another one lets a subclass stand beside an Embedding.
    Raises ``TypeError`` for a base that is not a Linear.
    """

    # values that weight decay pulls parameters towards, by their names; 0 where none is given, and
    # None where no one value would do, so that nothing pulls
    neutral: ClassVar[Mapping[str, float | None]] = {}
    best_from = 0  # the first step whose state may be what a run gives back

    def __init__(self, base: nn.Module):
        super().__init__()
        self.in_features, self.out_features = self.shape_of(base)
        self.base = base
        self.enabled = True  # False inside disable_adapter(model)
        self.merged = False
        self.kept: tuple[nn.Module, ...] = ()  # W0 while merged; a tuple, so no submodule

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """The method's equation: (…, in) to (…, out)."""
        raise NotImplementedError

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and bias of a Linear that computes what ``adapt`` does."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The method's own tensors, by their names in PEFT's files."""
        return dict(self._parameters.items())  # type: ignore[arg-type]

    def as_lora(self) -> Any:
        """The same update as a ``LoRALayer``; ``ValueError`` where it is not B A."""
        raise ValueError(f"a {type(self).__name__} changes its weight by more than a product B A")

    def training_state(self) -> dict[str, Tensor]:
        """What training changes besides parameters, so that a resumed run gets the same bits."""
        return {}

    @classmethod
    def check_run(cls, layers: Sequence[Any], steps: int) -> None:
        """Raise ``ValueError`` when these layers cannot be trained in a run of so many steps."""

    @classmethod
    def extra_loss(cls, layers: Sequence[Any]) -> Tensor | None:
        """What this method adds to each step's loss, in nats; None for nothing."""
        return None

    @classmethod
    def update_and_allocate(cls, layers: Sequence[Any], step: int) -> None:
        """After the optimizer's step number ``step`` (from 1), with its gradients still there."""

    @staticmethod
    def shape_of(base: nn.Module) -> tuple[int, int]:
        """(in, out) of a base that this method can stand beside; ``TypeError`` for another."""
        return linear_shape(base)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if self.merged or not self.enabled:
            return self.base(x)
        return self.adapt(self.base, x)

    def merged_base(self, onto: Tensor | None = None) -> nn.Module:
        """The base with the method folded in: a new module, rounded once to the base's dtype.

        ``onto``: a W0 (out, in) to take instead of the base's. Changes nothing. Raises
        ``ValueError`` when the result is not finite: a run diverged, or half precision overflowed.
        """
        try:
            self.shape_of(self.base)  # a parametrization may have come after the adapter
        except TypeError as error:
            raise ValueError(str(error)) from error
        weight, bias = self.fold(weight_of(self.base) if onto is None else onto, self.bias)
        weight = self.rounded("weight", weight)
        if bias is not None and bias is not self.bias:
            bias = self.rounded("bias", bias)
        return with_weight(self.base, weight, bias)

    def rounded(self, name: str, values: Tensor) -> Tensor:
        """The values in the base's dtype. Raises ``ValueError`` when they are not finite there."""
        dtype = dtype_of(self.base)
        values = values.to(dtype)
        if not torch.isfinite(values).all():
            raise ValueError(
                f"the merged {name} is not finite in {dtype}: the adapter diverged, or its values "
                "do not fit this dtype; train again with a smaller rate, or merge in float32"
            )
        return values

    def merge(self, keep_base: bool = True) -> None:
        """Put ``merged_base`` in the base's place.

        Raises ``ValueError`` as ``check_mergeable`` and ``merged_base`` do, and for four bits.
        """
        if isinstance(self.base, NF4Linear):
            raise ValueError(
                "this base is in four bits, which would lose most of ΔW: "
                "use minilora.merge(model, onto=…), which asks onto what"
            )
        self.check_mergeable()
        self.put(self.merged_base(), keep_base)

    def put(self, merged_base: nn.Module, keep_base: bool = True) -> None:
        """Put a merged base's values in place; ``keep_base=False`` drops the original's."""
        self.kept = (merged_base,)
        self.swap()
        self.kept, self.merged = self.kept if keep_base else (), True

    def swap(self) -> None:
        """Exchange what is in place and what is kept."""
        other = self.kept[0]
        if isinstance(self.base, NF4Linear) or isinstance(other, NF4Linear):
            self.base, self.kept = other.train(self.training), (self.base,)
        else:
            exchange(self.base, other)

    def unmerge(self) -> None:
        """Give the base back, to the bit. Raises ``ValueError`` as ``check_unmergeable``."""
        self.check_unmergeable()
        self.swap()
        self.kept, self.merged = (), False

    def check_mergeable(self) -> None:
        """Raise ``ValueError`` when merged already, or inside ``disable_adapter``."""
        self.check_enabled()
        if self.merged:
            raise ValueError(
                "this layer is merged already: a second merge would add ΔW twice; unmerge first"
            )
        if isinstance(self.base, nn.Linear) and not is_product(self.base):
            raise ValueError(
                f"the forward of {type(self.base).__name__} is not x Wᵀ + b, so that with a merged "
                "weight it would compute something else; keep the adapter beside it"
            )

    def check_unmergeable(self) -> None:
        """Raise ``ValueError`` when not merged, merged with ``keep_base=False``, or disabled."""
        self.check_enabled()
        if not self.merged:
            raise ValueError("this layer is not merged: there is nothing to take back")
        if not self.kept:
            raise ValueError(
                "this layer was merged with keep_base=False, so W0 is gone: load the base again"
            )

    def check_enabled(self) -> None:
        """Raise ``ValueError`` inside ``disable_adapter``, which puts the base in place itself."""
        if not self.enabled:
            raise ValueError(
                "this adapter is switched off by disable_adapter: "
                "merge and unmerge outside that context"
            )

    def original_base(self) -> nn.Module | None:
        """The base without the method, wherever it is; None after ``merge(keep_base=False)``."""
        in_place = not self.merged or not self.enabled  # inside disable_adapter the two are swapped
        return self.base if in_place else next(iter(self.kept), None)

    def _apply(self, fn: Any, recurse: bool = True) -> AdapterLayer:
        """The kept base moves and changes its dtype with the layer (``.to``, ``.double``)."""
        for base in self.kept:
            base._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Warn of a merged weight: who loads it beside the adapter would add ΔW twice."""
        if self.merged and self.enabled:
            warnings.warn(
                "adapters are merged, and this state dict does not say so: a model with adapters "
                "that loads it adds ΔW twice. unmerge(model) first, or merge_and_unload(model)",
                stacklevel=2,
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Refuse to write over a merged weight, behind which W0 waits to come back."""
        if self.merged:
            *_, errors = others
            errors.append(f"{prefix[:-1]} is merged: unmerge(model) before load_state_dict")
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models that read it; of four bits a float copy for this call."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, or None."""
        return getattr(self.base, "bias", None)


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """Every adapted Linear of a model with its plain path (paths.py), whatever the method."""
    for path, module in named_modules(model):
        if isinstance(module, AdapterLayer):
            yield path, module
