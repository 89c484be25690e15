"""A module that a config may name, and what the config made of it. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A module that a config may name: its path, and its sizes if it is a Linear.

    ``refused`` says why it cannot have an adapter (empty: it can). ``is_head`` marks the output
    head, which ``"all-linear"`` leaves alone. For a method that takes norms, a norm is what a
    Linear is for the others, with its size as ``in_features`` and ``out_features``.
    """

    path: str
    in_features: int = 0
    out_features: int = 0
    refused: str = ""
    is_linear: bool = True
    is_head: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Match:
    """One Linear of a model: its path and shape, and the pattern that chose it (None: none did)."""

    name: str
    in_features: int
    out_features: int
    pattern: str | None
    r: int
    cost: int | None = None  # the method's parameters here, where they are not LoRA's

    @property
    def parameters(self) -> int:
        """Trainable parameters here: of LoRA ``r (in + out)``, or 0 when not chosen."""
        of_lora = self.r * (self.in_features + self.out_features)
        cost = of_lora if self.cost is None else self.cost
        return cost if self.pattern is not None else 0

    @property
    def full_rank(self) -> int:
        """The largest rank that an update of this shape can have."""
        return min(self.in_features, self.out_features)
