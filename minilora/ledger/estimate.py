"""A fine-tune estimated from shapes alone: parameters, bytes, FLOPs. 405B take milliseconds.

    trainable   = Σ r (in + out) over the chosen Linears     (all parameters, when all are trained;
                  other methods: ledger/method_costs.py)
    weights     = parameters · bytes each; a 4-bit weight is half a byte
    constants   = the scales of 4-bit weights                (ledger/storage.py)
    gradients   = trainable · bytes each
    optimizer   = trainable · 8                              (AdamW's two moments in float32)
    activations = what autograd keeps                        (ledger/activations.py)
    temporary   = alive at the worst moment only: logits, their gradients, a dequantized weight

``ledger.measure`` finds the same on a live model, and ``tests/ledger/test_estimate.py`` compares
the two.

Left out: the process itself (a CUDA context takes about 0.5 GB), fragmentation, master weights of
mixed precision, several devices.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..checks import check_whole
from ..lora.adapter_config import AdapterConfig, AttachedConfig
from ..lora.config import LoraConfig
from ..lora.matches import Site
from .activations import Work, kept
from .attached_costs import NOTHING, Beside, beside
from .dimensions import Architecture
from .extra_costs import NONE, ROWS, Extras, extras
from .flops import flops_a_token
from .method_costs import COUSINS, at_site, default_config, file_shapes, frozen_numbers, method_name
from .planned_sites import choose
from .shapes import Source, architecture
from .storage import OPTIMIZER_BYTES, file_bytes, parameter_sizes, weight_bytes

BETWEEN_STEPS = ("weights", "constants", "adapters", "gradients", "optimizer")
CATEGORIES = (*BETWEEN_STEPS, "activations", "temporary")
METHODS = ("full", "lora", "qlora", *COUSINS)
OPTIMIZERS = ("adamw", "adamw8bit", "sgd")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a number
GPUS = {f"{size} GB": size for size in (8, 12, 16, 24, 32, 40, 48, 80, 141)}
GB = 10**9


@dataclass(frozen=True)
class Settings:
    """How the step is run. Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    - ``batch``: sequences of ``seq`` tokens at once; ``labels``: how many of all these tokens have
      a loss (None: every one).
    - ``dtype``: of the base; ``adapter_dtype`` (None: float32, which ``LoRALayer`` and PEFT use
      beside a half-precision base).
    - ``optimizer``: adamw (two float32 moments; torch's own keeps them in the dtype of the trained
      tensors, so bfloat16 takes half of that), adamw8bit (bitsandbytes'), sgd (none).
    - ``checkpointing``: recompute the blocks in backward; ``double_quant``: QLoRA's scales in 8
      bits.

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
        labels = {} if self.labels is None else {"labels": self.labels}
        for name, value in {"batch": self.batch, "seq": self.seq, **labels}.items():
            check_whole(name, value, 1)
        tokens = self.batch * self.seq
        if self.labels is not None and self.labels > tokens:
            raise ValueError(f"labels={self.labels} is more than batch · seq = {tokens} tokens")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("adapter_dtype", self.adapter_dtype, (None, *DTYPES))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)


@dataclass(frozen=True)
class Plan:
    """A predicted fine-tune, as ``plan`` returns it.

    ``bytes`` has every category at the worst moment of a step that starts with gradients there
    already (accumulation); ``total`` is their sum. ``peak`` is the worst moment of a step that
    starts without: activations are largest when backward begins, gradients when it ends.
    ``activations_peak`` is the most that is saved for backward at any time.

    >>> qlora = plan("llama-2-7b", method="qlora", checkpointing=True)
    >>> qlora.bytes["adapters"], qlora.fits["12 GB"]
    (16777216, True)
    >>> print(plan("llama-2-70b"))
    llama-2-70b, lora: 199.75 GB, 16,384,000 of 68,993,032,192 train, cards that fit: none
    """

    model: str
    method: str
    config: AdapterConfig | AttachedConfig | None
    settings: Settings
    parameters: int
    active: int  # of them, those that one token passes: fewer than all in a mixture of experts
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
        size, share = f"{self.total / GB:,.2f} GB", f"{self.trainable:,} of {self.parameters:,}"
        return f"{self.model}, {self.method}: {size}, {share} train, cards that fit: {cards}"

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
        """Whether ``total`` fits each card, in decimal GB; up to 7% more is left to the driver."""
        return {name: self.total <= size * GB for name, size in GPUS.items()}

    def as_dict(self) -> dict[str, Any]:
        """Every field and property in types that JSON has."""
        return asdict(self) | {"total": self.total, "share": self.share, "fits": self.fits}


def plan(
    source: Source,
    config: AdapterConfig | AttachedConfig | None = None,
    method: str = "lora",
    settings: Settings | None = None,
    **changes: Any,
) -> Plan:
    """Predict a fine-tune of a preset, a ``config.json`` (path, folder, dict) or a list of shapes.

    ``changes`` are fields of ``Settings``. Without a ``config``, q and v get rank 8 (plain shapes:
    all of them). Raises ``ValueError`` on an unknown preset (naming the nearest), a config that
    lacks a key, a target that matches nothing. Warns of a rank above min(in, out), which PEFT
    allows and which buys nothing.

    >>> qlora = plan("llama-3-8b", LoraConfig(r=16, target_modules="all-linear"), method="qlora")
    >>> qlora.trainable, qlora.parameters
    (41943040, 8072204288)
    """
    check_arguments(config, method, changes)
    arch, settings = architecture(source), replace(settings or Settings(), **changes)
    config, method = config_and_method(arch, config, method)
    size, adapter_size = DTYPES[settings.dtype], DTYPES[settings.adapter_dtype or "float32"]
    added = added_by(arch, config)
    trained = [*added.sizes, *added.extras.parameters.values()] if config else parameter_sizes(arch)
    adapter, frozen, of_base = sum(added.sizes), added.frozen, added.extras.numbers
    gradients = adapter * adapter_size + of_base * size if config else sum(trained) * size
    weights, constants, opened = weight_bytes(arch, size, method == "qlora", settings.double_quant)
    weights += of_base * size  # their originals, set aside
    work = work_of(settings, config, added)
    saved = kept(arch, work, settings.checkpointing)
    block_passing = saved.block_passing + opened
    moments = ((saved.at_loss, saved.loss_passing), (saved.in_block, block_passing))
    activations, temporary = max(moments, key=sum)
    by_category = {
        "weights": weights,
        "constants": constants,
        "adapters": (adapter + frozen) * adapter_size,
        "gradients": gradients,
        "optimizer": sum(map(OPTIMIZER_BYTES[settings.optimizer], trained)),
        "activations": activations,
        "temporary": temporary,
    }
    resident = weights + constants + by_category["adapters"] + by_category["optimizer"]
    at_end = gradients + saved.at_end + block_passing
    longer = work.seq / settings.seq  # with a soft prompt's rows
    forward, backward = (
        round(longer * flops) for flops in flops_a_token(arch, work, settings.checkpointing)
    )
    return Plan(
        model=arch.name,
        method=method,
        config=config,
        settings=settings,
        parameters=arch.parameters + adapter,
        active=arch.active_parameters + adapter,
        trainable=sum(trained),
        adapted=len(added.sites),
        bytes=by_category,
        peak=resident + max(activations + temporary, at_end),
        activations_peak=saved.saved,
        adapter_bytes=(adapter + frozen) * adapter_size,
        adapter_file_bytes=file_bytes(added.file, adapter_size) if config else 0,
        flops_forward=forward,
        flops_backward=backward,
    )


@dataclass(frozen=True)
class Added:
    """What a config adds to a planned model: tensors that train, others, its file; and where."""

    sites: list[Site] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    frozen: int = 0
    file: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    beside: Beside = NOTHING
    extras: Extras = NONE


def added_by(arch: Architecture, config: AdapterConfig | AttachedConfig | None) -> Added:
    """What a config adds; nothing where everything trains."""
    if config is None:
        return Added()
    if isinstance(config, AttachedConfig):
        attached = beside(arch, config)
        return Added(sizes=attached.sizes(), file=attached.file, beside=attached)
    sites = choose(arch, config)
    sizes = [math.prod(n) for site in sites for n in config.shapes(site).values()]
    file, more = dict(file_shapes(config, sites)), NONE
    if isinstance(config, LoraConfig):
        more = extras(arch, config, [site.path for site in sites])
        sizes += [tokens * width for tokens, width in more.rows.values()]
        file |= {f"base_model.model.{name}": (n,) for name, n in more.parameters.items()}
        file |= {f"base_model.model.{name}{ROWS}": shape for name, shape in more.rows.items()}
    return Added(sites, sizes, frozen_numbers(config, sites), file, extras=more)


def check_arguments(config: Any, method: str, changes: dict[str, Any]) -> None:
    """Raise ``ValueError`` or ``TypeError`` on an unknown method or setting, or a wrong config."""
    check_choice("method", method, METHODS)
    if not isinstance(config, AdapterConfig | AttachedConfig | None):
        raise TypeError(
            f"config must be a LoraConfig or another method's, got a {type(config).__name__}; "
            "pass settings by name: plan(model, seq=512)"
        )
    if config is not None and method in COUSINS and method_name(config) != method:
        raise ValueError(
            f"method={method!r} and the config is {method_name(config)!r}'s: give one of the two"
        )
    if unknown := [name for name in changes if name not in Settings.__dataclass_fields__]:
        raise TypeError(
            f"unknown setting {unknown[0]!r}, expected {', '.join(Settings.__dataclass_fields__)}; "
            "rank and targets go into LoraConfig(r=…)"
        )


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ``ValueError`` when a value is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def config_and_method(
    arch: Architecture, config: AdapterConfig | AttachedConfig | None, method: str
) -> tuple[AdapterConfig | AttachedConfig | None, str]:
    """The config that is planned, None where everything trains; and the method's name."""
    targets = "all-linear" if arch.family == "shapes" else ("q_proj", "v_proj")
    if method == "full":
        return None, method
    if config is None and method in COUSINS:
        return default_config(method, targets), method
    config = config or LoraConfig(target_modules=targets)
    return config, method if method == "qlora" else method_name(config)


def work_of(settings: Settings, config: Any, added: Added) -> Work:
    """The sizes that decide the activations, from the settings."""
    norms = config is not None and getattr(config, "takes_norms", False)
    adapted = {} if norms else {site.path: at_site(config, site) for site in added.sites}
    dropout = getattr(config, "lora_dropout", 0) or getattr(config, "vera_dropout", 0)
    texts, seq = settings.batch, settings.seq + added.beside.rows
    return Work(
        tokens=texts * seq,
        seq=seq,
        labels=texts * settings.seq if settings.labels is None else settings.labels,
        size=DTYPES[settings.dtype],
        adapter_size=DTYPES[settings.adapter_dtype or "float32"],
        adapted=adapted,
        trains_base=config is None,
        dropout=bool(dropout),
        trains_norms=norms,
        beside=added.beside,
        extras=added.extras,
    )
