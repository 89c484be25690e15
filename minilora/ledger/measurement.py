"""The ledger: what a fine-tune costs, counted and measured on a live model.

    parameters = Σ numel             tied weights once; 4-bit weights as the in · out numbers they stand for
    bytes      = Σ storage.nbytes    every storage once, whatever shares it
    peak       = max over a step's moments of Σ bytes of the storages alive then

``count`` reads a model; ``measure`` runs one training step and watches every tensor that is born and dies in it, each
under one of ``CATEGORIES``. A storage is an *activation* from the moment autograd asks to keep it for the backward pass; a
weight that autograd keeps too stays a weight. ``plan`` predicts the same from shapes alone.

Packed bytes are never counted as parameters: that halves the count of a 4-bit model (huggingface/peft #1020).

Left out: memory that a kernel takes and gives back inside one operation (on CUDA the allocator's own peak has it),
fragmentation, and the process itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .estimate import CATEGORIES
from .tensor_tracker import Watch, watched

ADAPTERS = ("lora_A", "lora_B")
CONSTANTS = ("absmax", "absmax2", "offset")  # a 4-bit weight's scales


@dataclass(frozen=True)
class Tally:
    """A share of a model: ``parameters`` and how many of them are ``trainable`` (logical numbers), ``bytes`` as stored.

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
    """What ``count`` found: the ``total``, and the same ``by_group`` of alike modules and ``by_dtype`` of storage.

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
        wide = max(len(name) for name, _ in rows)
        lines = [f"{'':{wide}}  {'parameters':>16}  {'trainable':>16}  {'bytes':>16}"]
        lines += [
            f"{name:{wide}}  {t.parameters:16,}  {t.trainable:16,}  {t.bytes:16,}"
            for name, t in rows
        ]
        return "\n".join(lines)


def count(model: nn.Module) -> Count:
    """Count a model: logical parameters, how many train, and stored bytes, by group of modules and by dtype.

    Tied weights count once, where they first appear. A 4-bit Linear counts ``in · out`` parameters, while its bytes are
    those of its codes and scales. Buffers have bytes and no parameters. Works on the meta device, where nothing is stored
    and bytes are what would be.

    >>> found = count(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2, bias=False)))
    >>> found.total
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
    """One tensor of a model, as the ledger books it."""

    tensor: Tensor
    group: str
    category: str
    tally: Tally

    @property
    def dtype(self) -> str:
        """The dtype it is stored in, as ``float32``."""
        return str(self.tensor.dtype).removeprefix("torch.")


def parts(model: nn.Module) -> Iterator[Part]:
    """Every parameter and buffer once, tied ones where they first appear; the scales of bitsandbytes' weights too."""
    seen: set[int] = set()
    storages: set[int] = set()
    for path, module in model.named_modules():
        four_bit = is_four_bit(module)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in [*own, *foreign_scales(module)]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            adapter = any(word in ADAPTERS for word in (*path.split("."), name))
            group = re.sub(r"\b\d+\b", "*", path.removesuffix(".base") or "model") + (
                ".lora" if name in ADAPTERS else ""
            )
            constant = name in CONSTANTS and (four_bit or has_state(module))
            key = tensor.untyped_storage()._cdata
            size = 0 if key in storages else tensor.untyped_storage().nbytes()
            storages.add(key)
            if isinstance(tensor, nn.Parameter):
                logical = logical_numel(tensor)
                tally = Tally(logical, logical if tensor.requires_grad else 0, size)
            else:
                packed: Any = module
                tally = Tally(
                    packed.in_features * packed.out_features
                    if four_bit and name == "packed"
                    else 0,
                    0,
                    size,
                )
            yield Part(
                tensor,
                group,
                "adapters" if adapter else "constants" if constant else "weights",
                tally,
            )


def is_four_bit(module: nn.Module) -> bool:
    """Whether this is a Linear of packed 4-bit codes: a uint8 buffer ``packed`` and the two sizes."""
    packed = module._buffers.get("packed")
    return packed is not None and packed.dtype == torch.uint8 and hasattr(module, "in_features")


def has_state(module: nn.Module) -> bool:
    """Whether this is a quantized Linear of bitsandbytes, which keeps its scales beside the weight."""
    return getattr(module._parameters.get("weight"), "quant_state", None) is not None


def foreign_scales(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The scales of a quantized Linear of bitsandbytes: they are neither parameters nor buffers."""
    if not has_state(module):
        return []
    state: Any = module._parameters["weight"].quant_state  # type: ignore[union-attr]
    nested = state.state2.absmax if state.nested else None
    return [
        (n, t)
        for n, t in zip(CONSTANTS, (state.absmax, nested, state.offset), strict=True)
        if isinstance(t, Tensor)
    ]


def logical_numel(parameter: Tensor) -> int:
    """How many numbers a parameter stands for; bitsandbytes' packed ones know the shape that they had."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


@dataclass(frozen=True)
class Measured:
    """Bytes of one training step, by category.

    - ``resident``: alive when the step is over. ``peaks``: each category's own largest moment.
    - ``at_peak``: the moment when all together were largest; ``allocator``: CUDA's own peak, None elsewhere.

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
        books = (self.resident, self.at_peak, self.peaks)
        rows = [
            f"{name:12}" + "".join(f"  {book[name]:16,}" for book in books) for name in CATEGORIES
        ]
        head = f"{'bytes':12}  {'resident':>16}  {'at the peak':>16}  {'own peak':>16}"
        return "\n".join(
            [head, *rows, f"{'total':12}  {sum(self.resident.values()):16,}  {self.peak:16,}"]
        )


def measure(
    step: Callable[[], Any], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Measured:
    """Run ``step()`` once and say what it kept alive: bytes by category, when it was over and at its peak.

    Give the ``optimizer`` if it exists before the step, and let one step pass first: Adam makes its state in its first.
    A tensor from outside that is neither weight nor gradient nor state (the batch, say) counts once the step touches it.

    >>> layer = nn.Linear(8, 4, bias=False)
    >>> found = measure(lambda: layer(torch.ones(2, 8)).sum().backward(), layer)
    >>> found.resident["weights"], found.resident["gradients"], found.peaks["activations"]
    (128, 128, 64)
    """
    watch = Watch()
    for part in parts(model):
        watch.see(part.tensor, part.category)
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
    resident, peaks, at_peak = (
        {name: book[name] for name in CATEGORIES}
        for book in (watch.live, watch.peaks, watch.at_peak)
    )
    return Measured(resident, peaks, at_peak, allocator)
