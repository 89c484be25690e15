"""What ``inject`` asks of a method's config: where it goes, what it puts there, what that costs.

    shapes(site)            the method's tensors at a module, by their names in PEFT's files
    wrap(base, path)        the layer that goes in there
    wrap_all(modules, …)    all of them, for a method whose layers share something

``LoraConfig`` is one; the others are in ``minilora/methods``. Every one names its modules by the
same rules (patterns.py). No torch until a layer is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..text import check_names
from .patterns import check_layers, check_patterns, check_regex

if TYPE_CHECKING:
    from torch import nn

    from .adapter_layer import AdapterLayer
    from .matches import Match, Site


class NamedFields:
    """A dataclass that refuses an unknown argument with the fields that it has (text.py)."""

    other_names: ClassVar[Mapping[str, str]] = {}  # of other libraries, for fields here

    def __new__(cls, *values: Any, **settings: Any) -> Any:
        """Look at the names before the dataclass's own ``__init__`` does."""
        check_names(cls, settings, cls.other_names)
        return super().__new__(cls)


class AdapterConfig(NamedFields):
    """The common part of every method's config: a frozen dataclass that says which modules.

    A subclass has the field ``target_modules``, calls ``check_targets`` when it is made, and
    defines ``shapes`` and ``wrap``. The other names here are fields in some methods, constants in
    the rest.
    """

    peft_type: ClassVar[str]  # the method's name in PEFT's files
    takes_norms: ClassVar[bool] = False  # norms instead of Linears
    takes_embeddings: ClassVar[bool] = False  # Embeddings beside Linears
    target_modules: str | Sequence[str]
    exclude_modules: str | Sequence[str] = ()
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    pattern_fields: ClassVar[Sequence[str]] = ()  # those whose keys are patterns of modules

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """The shapes of the method's tensors at a site, by their names in PEFT's files."""
        raise NotImplementedError

    def wrap(self, base: nn.Module, path: str) -> AdapterLayer:
        """The layer that goes in at ``path``, around the module that is there."""
        raise NotImplementedError

    def wrap_all(
        self, modules: Mapping[str, nn.Module], chosen: Sequence[Match]
    ) -> dict[str, AdapterLayer]:
        """The layer of every chosen module, by its path."""
        return {match.name: self.wrap(modules[match.name], match.name) for match in chosen}

    def rank_of(self, path: str) -> int:
        """The rank of the update there; 0 for a method without one."""
        return 0

    def parameters_at(self, site: Site) -> int:
        """Trainable parameters at a site."""
        return sum(math.prod(shape) for shape in self.shapes(site).values())

    def check_targets(self) -> None:
        """Put the checked form of the fields about modules in place; raise on anything else."""
        self._set("target_modules", check_patterns("target_modules", self.target_modules))
        self._set("exclude_modules", check_patterns("exclude_modules", self.exclude_modules))
        self._set("layers_to_transform", check_layers(self.layers_to_transform))
        if not self.target_modules:
            raise ValueError(
                'target_modules is empty: name at least one module, as ["q_proj", "v_proj"]'
            )
        self._check_layers_pattern()

    def _check_layers_pattern(self) -> None:
        """The two fields about layers belong together, and to a list of targets."""
        if pattern := self.layers_pattern:  # an empty one means none, as in PEFT
            names = check_patterns(
                "layers_pattern", [pattern] if isinstance(pattern, str) else pattern
            )
            for name in names:
                check_regex("layers_pattern", name)
            self._set("layers_pattern", names)
            if self.layers_to_transform is None:
                raise ValueError(
                    f"layers_pattern={names!r} needs layers_to_transform: "
                    "the numbers after that name"
                )
        targets = self.target_modules
        if self.layers_to_transform is not None and isinstance(targets, str):
            raise ValueError(
                f"layers_to_transform narrows a list of target_modules, got {targets!r}: "
                "give a list, or write the layers into the regular expression"
            )

    def _set(self, name: str, value: object) -> None:
        """Put the checked form of a field in its place."""
        object.__setattr__(self, name, value)


class AttachedConfig(NamedFields):
    """A config of a method beside the stream (attached.py): a frozen dataclass."""

    peft_type: ClassVar[str]

    def build(self, model: nn.Module) -> dict[tuple[str, str], Any]:
        """The modules for a model, by (path of the host, name); changes nothing.

        Raises ``ValueError`` for a model that cannot have them.
        """
        raise NotImplementedError

    def fields(self, model: nn.Module) -> dict[str, Any]:
        """The config as it is written to a file."""
        raise NotImplementedError
