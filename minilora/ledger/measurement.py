"""Measurement: a fine-tune's parameters and bytes, counted and measured on a live model.

    parameters = Σ numel             tied weights once; a 4-bit weight counts as in · out numbers
    bytes      = Σ storage.nbytes    every storage once, whatever shares it
    peak       = max over a step's moments of Σ bytes of the storages alive then

``count`` reads a model. ``measure`` runs one training step and follows every tensor that is made
and freed in it, each under one of ``CATEGORIES``. A storage is an *activation* from the moment
autograd asks to keep it for the backward pass; a weight that autograd keeps stays a weight.
``plan`` predicts the same from shapes alone.

Packed bytes are never counted as parameters, which would halve the count of a 4-bit model
(huggingface/peft #1020).

Left out: memory that a kernel takes and gives back inside one operation (on CUDA the allocator's
own peak includes it), fragmentation, and the process itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import AdapterLayer
from ..lora.trained_copies import trained_copies
from ..nf4.linear import NF4Linear
from .estimate import CATEGORIES
from .tensor_tracker import Watch, watched

ADAPTERS = (  # names of PEFT's tensors, and of ours that are no Parameter of an AdapterLayer
    *("lora_A", "lora_B", "lora_E", "lora_magnitude_vector", "ln_tuning_layers"),
    *("start_A", "start_B", "alive"),
    *("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B", "ia3_l"),
    *("rows", "soft_prompt", "prefix", "attention_adapter", "output_adapter"),
)
CONSTANTS = ("absmax", "absmax2", "offset")  # a 4-bit weight's scales


@dataclass(frozen=True)
class Tally:
    """A part of a model: ``parameters``, how many of them are ``trainable``, ``bytes`` as stored.

    >>> Tally(10, 2, 40) + Tally(1, 1, 4)
    Tally(parameters=11, trainable=3, bytes=44)
    """

    parameters: int = 0
    trainable: int = 0
    bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.parameters + other.parameters,
            self.trainable + other.trainable,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True)
class Count:
    """A counted model: the ``total``, ``by_group`` of alike modules and ``by_dtype`` of storage.

    >>> count(nn.Linear(3, 1).requires_grad_(False)).share
    0.0
    """

    total: Tally
    by_group: dict[str, Tally]
    by_dtype: dict[str, Tally]

    @property
    def share(self) -> float:
        """Trainable parameters over all, 0 to 1."""
        return self.total.trainable / max(1, self.total.parameters)

    def __str__(self) -> str:
        rows = [*self.by_group.items(), *self.by_dtype.items(), ("total", self.total)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'parameters':>16}  {'trainable':>16}  {'bytes':>16}"]
        for name, tally in rows:
            sizes = (tally.parameters, tally.trainable, tally.bytes)
            lines.append(f"{name:{width}}" + "".join(f"  {size:16,}" for size in sizes))
        return "\n".join(lines)


def count(model: nn.Module) -> Count:
    """Count parameters, trainable parameters and stored bytes, by group of modules and by dtype.

    Tied weights count once, where they first appear. A 4-bit Linear counts ``in · out`` parameters,
    while its bytes are those of its codes and scales. Buffers have bytes and no parameters. On the
    meta device, where nothing is stored, the bytes are those that a real device would hold.

    >>> counted = count(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2, bias=False)))
    >>> counted.total
    Tally(parameters=14, trainable=14, bytes=56)
    """
    groups: dict[str, Tally] = {}
    dtypes: dict[str, Tally] = {}
    for part in parts(model):
        groups[part.group] = groups.get(part.group, Tally()) + part.tally
        dtypes[part.dtype] = dtypes.get(part.dtype, Tally()) + part.tally
    return Count(sum(groups.values(), Tally()), groups, dtypes)


@dataclass(frozen=True)
class Part:
    """One tensor of a model, with its group, its category and its counts."""

    tensor: Tensor
    group: str
    category: str
    tally: Tally

    @property
    def dtype(self) -> str:
        """The dtype it is stored in, as ``float32``."""
        return str(self.tensor.dtype).removeprefix("torch.")


def parts(model: nn.Module) -> Iterator[Part]:
    """Every parameter, buffer and scale of bitsandbytes once, tied ones where they first appear."""
    seen: set[int] = set()
    storages: set[int] = set()
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in [*own, *foreign_scales(module)]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            group = re.sub(r"\b\d+\b", "*", path.removesuffix(".base") or "model")
            if is_own(name, module) or name in ADAPTERS:
                group += ".lora" if name.startswith("lora_") else ".adapter"
            key = tensor.untyped_storage()._cdata
            size = 0 if key in storages else tensor.untyped_storage().nbytes()
            storages.add(key)
            numbers = parameters_of(name, tensor, module)
            trainable = numbers if tensor.requires_grad else 0
            tally = Tally(numbers, trainable, size)
            yield Part(tensor, group, category_of(path, name, module), tally)


def category_of(path: str, name: str, module: nn.Module) -> str:
    """Under which of ``CATEGORIES`` a tensor counts."""
    words = (*path.split("."), name)
    if is_own(name, module) or any(word in ADAPTERS for word in words):
        return "adapters"
    quantized = isinstance(module, NF4Linear) or has_state(module)
    return "constants" if quantized and name in CONSTANTS else "weights"


def is_own(name: str, module: nn.Module) -> bool:
    """Whether a tensor is a Parameter of an adapter's layer, whatever the method calls it."""
    return isinstance(module, AdapterLayer) and name in module._parameters


def parameters_of(name: str, tensor: Tensor, module: nn.Module) -> int:
    """How many parameters a tensor stands for: none of a buffer, unless it holds 4-bit codes."""
    if isinstance(tensor, nn.Parameter):
        return logical_numel(tensor)
    if isinstance(module, NF4Linear) and name == "packed":
        return module.in_features * module.out_features
    return 0


def has_state(module: nn.Module) -> bool:
    """Whether this is a quantized Linear of bitsandbytes, which keeps scales beside its weight."""
    return getattr(module._parameters.get("weight"), "quant_state", None) is not None


def foreign_scales(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The scales of a quantized Linear of bitsandbytes: neither parameters nor buffers."""
    if not has_state(module):
        return []
    state: Any = module._parameters["weight"].quant_state  # type: ignore[union-attr]
    nested = state.state2.absmax if state.nested else None
    scales = zip(CONSTANTS, (state.absmax, nested, state.offset), strict=True)
    return [(name, scale) for name, scale in scales if isinstance(scale, Tensor)]


def logical_numel(parameter: Tensor) -> int:
    """How many numbers a parameter stands for; bitsandbytes' packed ones know their float shape."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


@dataclass(frozen=True)
class Measured:
    """Bytes of one training step, by category.

    - ``resident``: alive when the step is over. ``peaks``: each category's own largest moment.
    - ``at_peak``: the moment when the sum was largest. ``allocator``: CUDA's own peak, None
      elsewhere.

    >>> Measured({}, {}, at_peak={"weights": 128, "gradients": 128}).peak
    256
    """

    resident: dict[str, int]
    peaks: dict[str, int]
    at_peak: dict[str, int]
    allocator: int | None = None

    @property
    def peak(self) -> int:
        """Most bytes alive at one moment: the CUDA allocator's figure where there is one."""
        return sum(self.at_peak.values()) if self.allocator is None else self.allocator

    def __str__(self) -> str:
        columns = (self.resident, self.at_peak, self.peaks)
        lines = [f"{'bytes':12}  {'resident':>16}  {'at the peak':>16}  {'own peak':>16}"]
        for name in CATEGORIES:
            lines.append(f"{name:12}" + "".join(f"  {column[name]:16,}" for column in columns))
        lines.append(f"{'total':12}  {sum(self.resident.values()):16,}  {self.peak:16,}")
        return "\n".join(lines)


def measure(
    step: Callable[[], Any], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Measured:
    """Run ``step()`` once and measure the bytes alive by category, at its end and at its peak.

    Give the ``optimizer`` if it exists before the step, and let one step pass first, since Adam
    makes its state in its first. A tensor from outside that is neither weight nor gradient nor
    state (the batch, say) counts once the step touches it.

    >>> layer = nn.Linear(8, 4, bias=False)
    >>> measured = measure(lambda: layer(torch.ones(2, 8)).sum().backward(), layer)
    >>> measured.resident["weights"], measured.resident["gradients"], measured.peaks["activations"]
    (128, 128, 64)
    """
    watch = Watch()
    for part in parts(model):
        watch.see(part.tensor, part.category)
    for trained in trained_copies(model).values():  # set aside, yet there
        watch.see(trained.original, "weights")
    for parameter in model.parameters():
        if parameter.grad is not None:
            watch.see(parameter.grad, "gradients")
    if optimizer is not None:
        watch.see_state(optimizer)
    device = next((p.device for p in model.parameters() if p.device.type == "cuda"), None)
    if device is not None:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with watched(watch, model):
        step()
    allocator = None if device is None else torch.cuda.max_memory_allocated(device)
    resident, peaks, at_peak = map(by_category, (watch.live, watch.peaks, watch.at_peak))
    return Measured(resident, peaks, at_peak, allocator)


def by_category(sizes: Mapping[str, int]) -> dict[str, int]:
    """The bytes of every category, in the ledger's order, 0 where there are none."""
    return {name: sizes.get(name, 0) for name in CATEGORIES}
