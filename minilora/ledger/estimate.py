"""What a fine-tune will cost, from shapes alone: parameters, bytes, FLOPs. Nothing is allocated; 405B take milliseconds.

    trainable   = Σ r (in + out) over the chosen Linears           (all parameters, when all are trained)
    weights     = parameters · bytes each; a 4-bit weight is half a byte
    constants   = the scales of 4-bit weights   (ledger/storage.py)
    gradients   = trainable · bytes each        optimizer = trainable · 8 (AdamW's two moments in float32)
    activations = what autograd keeps           (ledger/activations.py)
    temporary   = what is passing by at the worst moment: the logits and their gradients, a weight out of 4 bits

``ledger.measure`` finds the same on a live model, and ``tests/ledger/test_estimate.py`` holds the two together.

Left out: the process itself (a CUDA context takes about 0.5 GB), fragmentation, master weights of mixed precision,
several devices.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..lora.config import LoraConfig
from ..lora.selection import (
    check_exclusions_used,
    check_keys_used,
    fits,
    in_layers,
    is_all_linear,
    rank_and_alpha,
)
from ..text import nearest
from .activations import Work, kept
from .flops import flops_a_token
from .shapes import Architecture, LinearShape, Source, architecture
from .storage import OPTIMIZER_BYTES, factor_shapes, file_bytes, parameter_sizes, weight_bytes

CATEGORIES = (
    "weights",
    "constants",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "temporary",
)
METHODS = ("full", "lora", "qlora")
OPTIMIZERS = ("adamw", "adamw8bit", "sgd")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a number
GPUS = {
    "8 GB": 8,
    "12 GB": 12,
    "16 GB": 16,
    "24 GB": 24,
    "32 GB": 32,
    "40 GB": 40,
    "48 GB": 48,
    "80 GB": 80,
    "141 GB": 141,
}
GB = 10**9


@dataclass(frozen=True)
class Settings:
    """How the step is run. Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    - ``batch`` sequences of ``seq`` tokens at once; ``labels`` of all these tokens have a loss (None: every one).
    - ``dtype`` of the base, ``adapter_dtype`` (None: float32, as ``LoRALayer`` and PEFT do beside a half-precision base).
    - ``optimizer``: adamw (two float32 moments; torch's own keeps them in the dtype of what trains, so in bfloat16 half of
      that), adamw8bit (bitsandbytes'), sgd (none).
    - ``checkpointing``: recompute the blocks in backward; ``double_quant``: QLoRA's scales in 8 bits.

    >>> Settings(seq=512, dtype="float32").batch
    1
    """

    batch: int = 1
    seq: int = 2048
    labels: int | None = None
    dtype: str = "bfloat16"
    adapter_dtype: str | None = None
    optimizer: str = "adamw"
    checkpointing: bool = False
    double_quant: bool = True

    def __post_init__(self) -> None:
        for name in ("batch", "seq", *(["labels"] if self.labels is not None else [])):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.labels is not None and self.labels > self.batch * self.seq:
            raise ValueError(
                f"labels={self.labels} is more than batch · seq = {self.batch * self.seq} tokens"
            )
        for name, known in (
            ("dtype", DTYPES),
            ("adapter_dtype", (None, *DTYPES)),
            ("optimizer", OPTIMIZERS),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, known))}, got {value!r}"
                )


@dataclass(frozen=True)
class Plan:
    """What ``plan`` found.

    ``bytes`` by category are those of the worst moment of a step that finds gradients there already (accumulation), and
    ``total`` is their sum. ``peak`` is the worst moment of a step that starts without: activations are largest when backward
    begins, gradients when it ends. ``activations_peak`` is the most that is saved for backward at any time.

    >>> found = plan("llama-2-7b", method="qlora", checkpointing=True)
    >>> found.bytes["adapters"], found.fits["12 GB"]
    (16777216, True)
    >>> print(plan("llama-2-70b"))
    llama-2-70b, lora: 199.75 GB, 16,384,000 of 68,993,032,192 train, cards that fit: none
    """

    model: str
    method: str
    config: LoraConfig | None
    settings: Settings
    parameters: int
    trainable: int
    adapted: int
    bytes: dict[str, int]
    peak: int
    activations_peak: int
    adapter_bytes: int
    adapter_file_bytes: int
    flops_forward: int
    flops_backward: int

    def __str__(self) -> str:
        cards = ", ".join(name for name, fits in self.fits.items() if fits) or "none"
        share = f"{self.trainable:,} of {self.parameters:,} train"
        return f"{self.model}, {self.method}: {self.total / GB:,.2f} GB, {share}, cards that fit: {cards}"

    @property
    def total(self) -> int:
        """Bytes of all categories together."""
        return sum(self.bytes.values())

    @property
    def share(self) -> float:
        """Trainable parameters over all, 0 to 1."""
        return self.trainable / self.parameters

    @property
    def fits(self) -> dict[str, bool]:
        """Whether ``total`` fits each of ``GPUS``, in decimal gigabytes; cards hold up to 7% more, the driver takes it."""
        return {name: self.total <= size * GB for name, size in GPUS.items()}

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it."""
        return asdict(self) | {"total": self.total, "share": self.share, "fits": self.fits}


def plan(
    source: Source,
    config: LoraConfig | None = None,
    method: str = "lora",
    settings: Settings | None = None,
    **changes: Any,
) -> Plan:
    """Predict a fine-tune of a preset, a ``config.json`` (path, folder or dict) or a list of shapes.

    ``changes`` are fields of ``Settings``. Without a ``config``, q and v get rank 8 (plain shapes: all of them). Raises
    ``ValueError`` on an unknown preset (nearest names), a config that lacks a key, a target that matches nothing; warns of a
    rank above min(in, out), which PEFT allows and which buys nothing.

    >>> found = plan("llama-3-8b", LoraConfig(r=16, target_modules="all-linear"), method="qlora")
    >>> found.trainable, found.parameters
    (41943040, 8072204288)
    """
    check_question(config, method, changes)
    arch, settings = architecture(source), replace(settings or Settings(), **changes)
    if method == "full":
        config, chosen = None, []
    else:
        config = config or LoraConfig(
            target_modules="all-linear" if arch.family == "shapes" else ("q_proj", "v_proj")
        )
        chosen = choose(arch, config)
    size, adapter_size = DTYPES[settings.dtype], DTYPES[settings.adapter_dtype or "float32"]
    ranks = (
        {linear.name: rank_and_alpha(linear.name, config)[0] for linear in chosen} if config else {}
    )
    factors = [
        (x.name, part, rows, columns)
        for x in chosen
        for part, rows, columns in factor_shapes(x, ranks[x.name])
    ]
    inside = [rows * columns for _, _, rows, columns in factors]
    adapter = sum(inside)
    tensors, trained_size = (inside, adapter_size) if config else (parameter_sizes(arch), size)
    trainable = sum(tensors)
    weights, constants, opened = weight_bytes(arch, size, method == "qlora", settings.double_quant)
    work = work_of(settings, ranks, method == "full", bool(config and config.lora_dropout))
    found = kept(arch, work, settings.checkpointing)
    gradients = trainable * trained_size
    moments = ((found.at_loss, found.loss_passing), (found.in_block, found.block_passing + opened))
    activations, temporary = max(moments, key=sum)
    book = {
        "weights": weights,
        "constants": constants,
        "adapters": adapter * adapter_size,
        "gradients": gradients,
        "optimizer": sum(map(OPTIMIZER_BYTES[settings.optimizer], tensors)),
        "activations": activations,
        "temporary": temporary,
    }
    resident = weights + constants + book["adapters"] + book["optimizer"]
    forward, backward = flops_a_token(arch, work, settings.checkpointing)
    return Plan(
        model=arch.name,
        method=method,
        config=config,
        settings=settings,
        parameters=arch.parameters + adapter,
        trainable=trainable,
        adapted=len(chosen),
        bytes=book,
        peak=resident
        + max(activations + temporary, gradients + found.at_end + found.block_passing + opened),
        activations_peak=found.saved,
        adapter_bytes=adapter * adapter_size,
        adapter_file_bytes=file_bytes(factors, adapter_size) if factors else 0,
        flops_forward=forward,
        flops_backward=backward,
    )


def check_question(config: Any, method: str, changes: dict[str, Any]) -> None:
    """Raise ``ValueError`` or ``TypeError`` on a method or setting that there is not, or a config of another kind."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not isinstance(config, LoraConfig | None):
        raise TypeError(
            f"config must be a LoraConfig, got a {type(config).__name__}; settings go by name: plan(model, seq=512)"
        )
    if unknown := [name for name in changes if name not in Settings.__dataclass_fields__]:
        known = ", ".join(Settings.__dataclass_fields__)
        raise TypeError(
            f"no setting is called {unknown[0]!r}, known are {known}; rank and targets go in LoraConfig(r=…)"
        )


def work_of(settings: Settings, ranks: dict[str, int], trains_base: bool, dropout: bool) -> Work:
    """What decides the activations, from the settings."""
    tokens = settings.batch * settings.seq
    return Work(
        tokens=tokens,
        seq=settings.seq,
        labels=tokens if settings.labels is None else settings.labels,
        size=DTYPES[settings.dtype],
        adapter_size=DTYPES[settings.adapter_dtype or "float32"],
        ranks=ranks,
        trains_base=trains_base,
        dropout=dropout,
    )


def choose(arch: Architecture, config: LoraConfig) -> list[LinearShape]:
    """The Linears that the config's targets match, by the rules of ``lora/selection.py``; raise ``ValueError`` when some match none."""
    targets, linears = config.target_modules, arch.linears
    paths = [x.name.split(".") for x in linears]
    check_exclusions_used(
        {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}, config
    )
    linears = tuple(x for x in linears if fits(x.name, config.exclude_modules) is None)
    if is_all_linear(targets):
        chosen = [linear for linear in linears if linear.role != "head"]
    else:
        layers = (config.layers_to_transform, config.layers_pattern)
        chosen = [
            x
            for x in linears
            if fits(x.name, targets) is not None
            and (x.name in targets or in_layers(x.name, *layers))
        ]
    entries = () if isinstance(targets, str) else targets
    unused = [e for e in entries if not any(fits(x.name, [e]) for x in chosen)] or (
        [] if chosen else [str(targets)]
    )
    if unused:
        names = Counter(linear.name.rpartition(".")[2] for linear in arch.linears)
        near = [n for entry in unused for n in nearest(entry.rpartition(".")[2], names)]
        raise ValueError(
            f"target_modules: nothing in {arch.name} matches {', '.join(map(repr, unused))}"
            + (f"; did you mean {near[0]!r}?" if near else ";")
            + f" Linears: {', '.join(f'{name} (×{count})' for name, count in names.items())}"
        )
    check_keys_used([linear.name for linear in chosen], config)
    if tied := [linear.name for linear in chosen if linear.tied]:
        raise ValueError(
            f"target_modules: {tied[0]}'s weight is tied to the embedding, and a merge would change both"
        )
    ranks = {x.name: rank_and_alpha(x.name, config)[0] for x in chosen}
    if high := [x for x in chosen if ranks[x.name] > min(x.in_features, x.out_features)]:
        least = min(min(x.in_features, x.out_features) for x in high)
        warnings.warn(
            f"r={ranks[high[0].name]} is above min(in, out) = {least} of {high[0].name} (and {len(high) - 1} more): "
            "the update cannot have a higher rank than its matrix, so these parameters buy nothing",
            stacklevel=3,
        )
    return chosen
