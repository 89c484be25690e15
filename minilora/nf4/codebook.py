"""Sixteen levels and the tables made from them: NF4, and FP4 and INT4 to compare it with.

A codebook is what a 4-bit number means. The quantizer asks where a value in [-1, 1] stands among the levels; the dequantizer
which level a code is. Both questions are answered by tables, made here once for each codebook and device.

Sources: NF4: QLoRA (arXiv 2305.14314) section 3, by way of ``level0.nf4_levels``. FP4: bitsandbytes' encoding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from .. import level0

CELLS = 512  # cells in [0, 1]: fine enough that none holds two boundaries, in any of the codebooks


@dataclass(frozen=True)
class Codebook:
    """16 (or 15) levels in ascending order, and the code of each: bitsandbytes' FP4 codes are not in order."""

    levels: tuple[float, ...]
    codes: tuple[int, ...]

    @property
    def boundaries(self) -> list[float]:
        """Midpoints between neighbours, as float32 has them. A value just there belongs to the lower level."""
        return [
            ((torch.tensor(low) + torch.tensor(high)) / 2).item()
            for low, high in pairwise(self.levels)
        ]


@cache
def codebook(kind: str) -> Codebook:
    """``nf4``, ``fp4`` (a sign, two exponent bits, one fraction bit) or ``int4`` (-7/7 … 7/7). ``ValueError`` for others.

    >>> codebook("nf4").levels[7:9]
    (0.0, 0.07958029955625534)
    """
    if kind == "nf4":
        return Codebook(tuple(level0.nf4_levels().tolist()), tuple(range(16)))
    # magnitudes by code; codes 8 to 15 are the same with a minus, so zero is there twice
    if kind == "fp4":
        magnitudes = [m / 12 for m in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
        by_level = sorted(
            [(m, c) for c, m in enumerate(magnitudes) if c]
            + [(-m, c + 8) for c, m in enumerate(magnitudes) if c]
        )
        ordered = [*by_level[:7], (0.0, 0), (0.0, 8), *by_level[7:]]
        return Codebook(
            tuple(torch.tensor([m for m, _ in ordered]).tolist()),
            tuple(code for _, code in ordered),
        )
    if kind == "int4":
        return Codebook(tuple((torch.arange(-7, 8) / 7).tolist()), tuple(range(15)))
    raise ValueError(f"unknown codebook {kind!r}: needed 'nf4', 'fp4' or 'int4'")


@cache
def cell_tables(kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell: how many boundaries lie below it (uint8), and the next one (float32, infinity after the last)."""
    edges = torch.arange(-CELLS, CELLS + 1, device=device) / CELLS
    boundaries = torch.tensor([*codebook(kind).boundaries, math.inf], device=device)
    first = (edges[:, None] > boundaries).sum(dim=1)
    return first.to(torch.uint8), boundaries[first]


@cache
def table_of_levels(kind: str, device: torch.device) -> Tensor:
    """(16,) float32: level by code."""
    book, table = codebook(kind), torch.zeros(16)
    table[list(book.codes)] = torch.tensor(book.levels)
    return table.to(device)


@cache
def table_of_pairs(kind: str, device: torch.device) -> Tensor:
    """(256,): the two float32 levels that a byte stands for, seen as one complex64 so that a look-up moves both."""
    levels, every = table_of_levels(kind, torch.device("cpu")), torch.arange(256)
    return (
        torch.stack([levels[every >> 4], levels[every & 15]], dim=1)
        .view(torch.complex64)
        .view(-1)
        .to(device)
    )
