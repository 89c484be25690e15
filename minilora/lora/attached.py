"""Methods that stand beside the stream of activations, not beside one weight.

A soft prompt puts rows before the text, a prefix fills the cache, a bottleneck reads and writes
between the layers. None is a matrix that could be added to another, so none can be merged. Each is
a module that hangs in the model (its Parameters train and move with the model's) and a few hooks
that do its work. The model's own modules keep their classes and paths; ``detach`` leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from torch import Tensor, nn

from .adapter_config import AttachedConfig
from .adapter_layer import AdapterLayer, adapter_layers
from .paths import named_modules, plain_path, unwrapped
from .selection import InjectReport

GENERATES: ContextVar[bool] = ContextVar("GENERATES", default=False)


@contextmanager
def generating() -> Iterator[None]:
    """``generate`` is at work: rows and the text after them may be more than the model's positions.

    >>> with generating():
    ...     GENERATES.get()
    True
    """
    token = GENERATES.set(True)
    try:
        yield
    finally:
        GENERATES.reset(token)


class Attached(nn.Module):
    """A method with hooks. ``puts_rows_before``: its Parameter's rows stand before each text."""

    why_not_mergeable: ClassVar[str]
    puts_rows_before: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, float | None]] = {}  # as AdapterLayer's
    merged = False  # never

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True  # False inside disable_adapter(model)
        self.handles: list[Any] = []
        self.place: tuple[str, str] = ("", "")  # where it hangs: a module's plain path, its name

    @property
    def rows_before(self) -> int:
        """How many positions each text gets before its tokens."""
        return len(next(self.parameters())) if self.puts_rows_before else 0

    def hook(self, host: nn.Module) -> None:
        """Put the hooks into the module that this one hangs in."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by their names in a file."""
        raise NotImplementedError

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a file's tensors, whose shapes fit."""
        raise NotImplementedError

    def detach(self) -> None:
        """Take the hooks out."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def attached_modules(model: nn.Module) -> Iterator[tuple[str, Attached]]:
    """Every attached module of a model with its plain path.

    >>> list(attached_modules(nn.Sequential(nn.Linear(2, 2))))
    []
    """
    for path, module in named_modules(model):
        if isinstance(module, Attached):
            yield path, module


def adapters_of(model: nn.Module) -> list[tuple[str, AdapterLayer | Attached]]:
    """Everything that was injected into a model, beside a weight or beside the stream."""
    return [*adapter_layers(model), *attached_modules(model)]


def report_of(
    model: nn.Module, config: AttachedConfig, parts: Mapping[Any, Attached]
) -> InjectReport:
    """What attaching would train."""
    beside = tuple(
        (f"{host}.{name}".lstrip("."), sum(p.numel() for p in part.parameters()), config.peft_type)
        for (host, name), part in parts.items()
    )
    trainable = sum(count for _, count, _ in beside)
    total = sum(p.numel() for p in model.parameters()) + trainable
    return InjectReport((), trainable, total, beside)


def attach(model: nn.Module, config: AttachedConfig) -> InjectReport:
    """Build, freeze the base, hang in, hook. The caller has checked that nothing else is there."""
    parts = config.build(model)
    report = report_of(model, config, parts)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    root: Any = unwrapped(model)
    root._frozen_by_inject = frozenset(plain_path(model, name) for name in trained)
    root._adapter_config = config
    model.requires_grad_(False)
    modules = dict(named_modules(model))
    for (host, name), part in parts.items():
        part.place = host, name
        modules[host].add_module(name, part.train(model.training))
        part.hook(modules[host])
    return report


def detach_all(model: nn.Module) -> None:
    """Take every attached module out again."""
    modules = dict(named_modules(model))
    for path, part in list(attached_modules(model)):
        part.detach()
        delattr(modules[path.rpartition(".")[0]], part.place[1])
