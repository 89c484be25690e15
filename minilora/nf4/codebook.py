"""Sixteen levels and the tables made from them: NF4, and FP4 and INT4 to compare it with.

A codebook is what a 4-bit number means. The quantizer asks where a value in [-1, 1] stands among
the levels; the dequantizer asks which level a code is. Both questions are answered by tables, made
here once for each codebook and device.

Sources: NF4: QLoRA (arXiv 2305.14314) section 3, by way of ``level0.nf4_levels``. FP4:
bitsandbytes' encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .. import level0

CELLS = 512  # cells in [0, 1]: fine enough that none holds two boundaries, in any of the codebooks
Build = TypeVar("Build", bound=Callable[..., Any])


def constant(build: Build) -> Build:
    """Keep each table that a function builds, and build it outside the transforms of torch.func.

    A table made inside one would be wrapped for it, and useless afterwards.
    """

    @cache
    @wraps(build)
    def kept(*arguments: Any) -> Any:
        with temporarily_clear_interpreter_stack():
            return build(*arguments)

    return kept  # type: ignore[return-value]


@dataclass(frozen=True)
class Codebook:
    """16 (or 15) ascending levels, and each one's code: those of FP4 are not in order."""

    levels: tuple[float, ...]
    codes: tuple[int, ...]

    @property
    def boundaries(self) -> list[float]:
        """Midpoints between neighbours, in float32. A value on one belongs to the lower level."""
        levels = float32(self.levels)
        return ((levels[:-1] + levels[1:]) / 2).tolist()


@cache
def codebook(kind: str) -> Codebook:
    """``nf4``, ``fp4`` (a sign, two exponent bits, one fraction bit) or ``int4`` (-7/7 … 7/7).

    Raises ``ValueError`` for other names.

    >>> codebook("nf4").levels[7:9]
    (0.0, 0.07958029955625534)
    """
    if kind == "nf4":
        return Codebook(tuple(level0.nf4_levels().tolist()), tuple(range(16)))
    # magnitudes by code; codes 8 to 15 are the same with a minus, so zero is there twice
    if kind == "fp4":
        magnitudes = [m / 12 for m in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
        positive = [(magnitude, code) for code, magnitude in enumerate(magnitudes) if code]
        negative = [(-magnitude, code + 8) for magnitude, code in positive]
        ordered = [*sorted(negative), (0.0, 0), (0.0, 8), *sorted(positive)]
        levels = float32([level for level, _ in ordered])  # rounded
        return Codebook(tuple(levels.tolist()), tuple(code for _, code in ordered))
    if kind == "int4":
        return Codebook(tuple((float32(range(-7, 8)) / 7).tolist()), tuple(range(15)))
    raise ValueError(f"unknown codebook {kind!r}: expected 'nf4', 'fp4' or 'int4'")


def float32(values: Iterable[float]) -> Tensor:
    """These values on the CPU, whatever torch's default dtype and device are."""
    return torch.tensor(list(values), dtype=torch.float32, device="cpu")


@constant
def cell_tables(kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell the number of boundaries below it (uint8), and the next one (or infinity)."""
    edges = float32(range(-CELLS, CELLS + 1)) / CELLS
    boundaries = float32([*codebook(kind).boundaries, math.inf])
    first = (edges[:, None] > boundaries).sum(dim=1)
    return first.to(device, torch.uint8), boundaries[first].to(device)


@constant
def table_of_levels(kind: str, device: torch.device) -> Tensor:
    """(16,) float32: level by code."""
    book, table = codebook(kind), float32([0] * 16)
    table[list(book.codes)] = float32(book.levels)
    return table.to(device)


@constant
def table_of_pairs(kind: str, device: torch.device) -> Tensor:
    """(256,): the two float32 levels of a byte, as one complex64, so that a look-up moves both."""
    levels, byte = table_of_levels(kind, torch.device("cpu")), torch.arange(256, device="cpu")
    pairs = torch.stack([levels[byte >> 4], levels[byte & 15]], dim=1)  # (256, 2)
    return pairs.view(torch.complex64).view(-1).to(device)
