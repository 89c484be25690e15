"""A model as dimensions: every Linear with its name and sizes, and what else has parameters.

``LinearShape`` is one Linear, ``Architecture`` a whole model. ``ledger/families.py`` builds them
from a ``config.json``; the rest of the ledger reads them and needs no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import is_number


@dataclass(frozen=True)
class LinearShape:
    """One Linear; ``role``, its part in ``block``.

    q, k, v, qkv, o, gate, up, gate_up, down, experts, dense, head.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    role: str = "dense"
    block: str = ""
    tied: bool = False  # its weight is the embedding's: counted there

    @property
    def weights(self) -> int:
        """``in · out``, whoever owns them."""
        return self.in_features * self.out_features

    @property
    def parameters(self) -> int:
        """Own parameters: the bias, and the weight unless it is tied."""
        return (0 if self.tied else self.weights) + (self.out_features if self.bias else 0)


@dataclass(frozen=True)
class Architecture:
    """A model as shapes: its Linears, and the embeddings and norms (``others``) as (name, numbers).

    The sizes from ``hidden`` on decide the activations.
    """

    name: str
    family: str
    linears: tuple[LinearShape, ...]
    others: tuple[tuple[str, int], ...] = ()
    hidden: int = 0
    heads: int = 0
    head_dim: int = 0
    rms: bool = True  # RMSNorm, as opposed to LayerNorm
    rotary: bool = True
    qk_norm: bool = False
    experts: tuple[LinearShape, ...] = ()  # of each block with experts: those one token passes
    idle: int = 0  # parameters of the experts that one token does not pass

    @property
    def parameters(self) -> int:
        """All parameters, tied weights once."""
        in_linears = sum(linear.parameters for linear in self.linears)
        return in_linears + sum(numbers for _, numbers in self.others)

    @property
    def active_parameters(self) -> int:
        """The parameters that one token passes; all of them without experts."""
        return self.parameters - self.idle

    @property
    def blocks(self) -> dict[str, list[LinearShape]]:
        """The Linears of each block, in order, without the head and others outside the blocks."""
        by_block: dict[str, list[LinearShape]] = {}
        for linear in self.linears:
            if linear.block:
                by_block.setdefault(linear.block, []).append(linear)
        return by_block


def whole(config: Mapping[str, Any], key: str, name: str, default: int | None = None) -> int:
    """A size; ``ValueError`` names the key when it is missing or not a whole number above 0."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name}: the config lacks {key!r}, which decides shapes")
    if not is_number(value, int) or value < 1:
        raise ValueError(f"{name}: {key} must be a whole number of at least 1, got {value!r}")
    return value
