"""Four bits a weight: NF4, double quantization, and two other codebooks to compare with.

The idea. A block of 64 weights is divided by its largest magnitude, so that all lie in [-1, 1]. Each is replaced by the
nearest of 16 levels, and only the level's number is kept: four bits. Evenly spaced levels would spend most numbers where
hardly any weight is; NF4 puts them at quantiles of a normal distribution, dense near zero, sparse outside, with an exact
zero (QLoRA, arXiv 2305.14314, section 3). ``level0.py`` has the definition in NumPy.

The format of one tensor of n weights:

    packed   uint8    two codes a byte, the even element in the high half               4              bits a weight
    absmax   float32  the largest magnitude of each block of 64                         32 / 64      = 0.5
    or, with double quantization (the scales are numbers to be quantized too):
    absmax   uint8    absmax - offset in 8 bits of a dynamic map, in blocks of 256      8 / 64       = 0.125
    absmax2  float32  the largest magnitude of each block of 256 scales                 32 / (64·256) = 0.002
    offset   float32  the mean of all scales, taken off first                           32 / n

4.5 bits a weight, or 4.127. The 0.373 saved are 8% of the tensor; "32 times smaller", as one can read, is true of
nothing in it.

What it costs. A weight is off by at most half the widest gap between levels (0.152) times its block's absmax; on normal
weights the root mean square error is 9.2% of theirs. Every use of the tensor pays for its dequantization.

What differs. bitsandbytes: nothing, byte for byte, down to multiplying full blocks by 1/absmax but dividing a
partial last one, and to reading the scales' codes from a table of 65,536 entries that is not always nearest. (Its AVX-512
kernel, 0.50.2, dequantizes wrongly when rows are no multiple of the block; tests/nf4/test_tensor.py shows it.) torchao: levels rounded
to four decimals, scales in int8 blocks of their own.

How it is fast. Quantizing: a cell of 1/512 holds at most one boundary between two levels, so a table and one comparison
give the code (``place``; ``place_plainly`` is the definition). Dequantizing: a byte is an index into 256 pairs of levels. (A
table of 65,536 fours is read half as often and is slower: it does not stay in the cache.)

Left out: other bit widths, stochastic rounding, error feedback as in GPTQ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .codebook import CELLS, Codebook, cell_tables, codebook, table_of_pairs

__all__ = ["NF4Tensor", "quantize"]

BLOCK_SIZES = tuple(2**k for k in range(5, 13))  # 32 to 4096
SCALE_BLOCK = 256  # so many scales share one float32
# weights at a time, so that the work stays in the cache
QUANTIZE_CHUNK, DEQUANTIZE_CHUNK = 1 << 18, 1 << 20


@dataclass(frozen=True)
class NF4Tensor:
    """A tensor in four bits; ``dequantize()`` gives floats back.

    ``packed`` (⌈n/2⌉,) uint8, two codes a byte. ``absmax``: float32 (blocks,), or with double quantization the uint8 codes of
    the dynamic map, to be read with ``absmax2`` float32 (⌈blocks/256⌉,) and ``offset`` float32 (). ``shape`` and ``dtype`` are
    those of the original. Raises ``ValueError`` when the parts do not fit each other.

    >>> q = quantize(torch.eye(64))
    >>> q.dequantize().trace().item(), q.nbytes, sorted(q.tensors)
    (64.0, 2120, ['absmax', 'absmax2', 'offset', 'packed'])
    """

    packed: Tensor
    absmax: Tensor
    absmax2: Tensor | None
    offset: Tensor | None
    shape: torch.Size
    dtype: torch.dtype = torch.float32
    block_size: int = 64
    kind: str = "nf4"

    def __post_init__(self) -> None:
        check_block_size(self.block_size)
        codebook(self.kind)
        wanted = part_shapes(self.shape, self.block_size, self.absmax2 is not None)
        for name, (shape, dtype) in wanted.items():
            part = getattr(self, name)
            if part is None or tuple(part.shape) != shape or part.dtype != dtype:
                found = "nothing" if part is None else f"{tuple(part.shape)} {part.dtype}"
                what = f"a {tuple(self.shape)} tensor in blocks of {self.block_size}"
                raise ValueError(f"{name} must be {shape} {dtype} for {what}, got {found}")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that takes memory, by name."""
        parts = {
            "packed": self.packed,
            "absmax": self.absmax,
            "absmax2": self.absmax2,
            "offset": self.offset,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together, as stored."""
        return sum(part.untyped_storage().nbytes() for part in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """``8 nbytes / n``."""
        return 8 * self.nbytes / math.prod(self.shape)

    def scales(self) -> Tensor:
        """One float32 a block: absmax, the second level undone."""
        if self.absmax2 is None or self.offset is None:
            return self.absmax
        first = dynamic_map(self.absmax.device).index_select(0, self.absmax.int())  # (blocks,)
        whole = len(first) // SCALE_BLOCK * SCALE_BLOCK
        first[:whole].view(-1, SCALE_BLOCK).mul_(self.absmax2[: whole // SCALE_BLOCK, None])
        first[whole:] *= self.absmax2[-1]
        return first.add_(self.offset)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """``level[code] · scale`` in float32, then rounded to ``dtype`` (by default the original's), in the original shape."""
        n, scales, device = math.prod(self.shape), self.scales(), self.packed.device
        out = torch.empty(n, dtype=dtype or self.dtype, device=device)
        whole = n // self.block_size * self.block_size
        table = table_of_pairs(self.kind, device)
        room = (
            None
            if out.dtype == torch.float32
            else torch.empty(min(whole, DEQUANTIZE_CHUNK), device=device)
        )
        for start in range(0, whole, DEQUANTIZE_CHUNK):
            end = min(start + DEQUANTIZE_CHUNK, whole)
            values = out[start:end] if room is None else room[: end - start]
            torch.index_select(
                table, 0, self.packed[start // 2 : end // 2].int(), out=values.view(torch.complex64)
            )
            values.view(-1, self.block_size).mul_(
                scales[start // self.block_size : end // self.block_size, None]
            )
            if room is not None:
                out[start:end] = values
        if whole < n:  # a last, shorter block
            rest = table.index_select(0, self.packed[whole // 2 :].int()).view(torch.float32)
            out[whole:] = rest[: n - whole] * scales[-1]
        return out.view(self.shape)


def part_shapes(
    shape: Sequence[int], block_size: int, double_quant: bool
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """(shape, dtype) of each part of a quantized tensor."""
    n = math.prod(shape)
    blocks = -(-n // block_size)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "packed": ((-(-n // 2),), torch.uint8),
        "absmax": ((blocks,), torch.uint8 if double_quant else torch.float32),
    }
    if double_quant:
        shapes |= {
            "absmax2": ((-(-blocks // SCALE_BLOCK),), torch.float32),
            "offset": ((), torch.float32),
        }
    return shapes


def quantize(
    weight: Tensor, block_size: int = 64, double_quant: bool = True, kind: str = "nf4"
) -> NF4Tensor:
    """Quantize a floating-point tensor, flattened, block by block, in float32.

    Raises ``TypeError`` for a tensor that is not floating-point, ``ValueError`` for an empty one, for values that are not
    finite in float32 (the first is named), for a block size that is no power of two from 32 to 4096, for an unknown codebook.

    >>> q = quantize(torch.linspace(-1, 1, 4096).view(64, 64))
    >>> q.packed.shape, round(q.bits_per_weight, 3)
    (torch.Size([2048]), 4.141)
    >>> (q.dequantize() - torch.linspace(-1, 1, 4096).view(64, 64)).abs().max() < 0.16
    tensor(True)
    """
    check_quantizable(weight)
    check_block_size(block_size)
    book = codebook(kind)
    flat = weight.detach().reshape(-1)
    n, whole = len(flat), len(flat) // block_size * block_size
    packed = torch.empty(-(-n // 2), dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-n // block_size), dtype=torch.float32, device=flat.device)
    for start in range(0, whole, QUANTIZE_CHUNK):
        end = min(start + QUANTIZE_CHUNK, whole)
        blocks = flat[start:end].float().view(-1, block_size)
        scale = blocks.abs().amax(dim=1)  # (blocks,)
        check_finite(scale, weight)
        absmax[start // block_size : end // block_size] = scale
        inverse = (1.0 / scale.clamp(min=1e-38)).masked_fill_(scale == 0, 0.0)
        packed[start // 2 : end // 2] = pack(place(blocks * inverse[:, None], kind), book)
    if whole < n:  # bitsandbytes divides in a last, shorter block, and keeps the floor as its scale
        rest = flat[whole:].float()
        absmax[-1] = rest.abs().amax().clamp(min=1e-38)
        check_finite(absmax[-1], weight)
        places = torch.nn.functional.pad(
            place_plainly(rest / absmax[-1], book), (0, n % 2), value=book.levels.index(0.0)
        )
        packed[whole // 2 :] = pack(places, book)
    if double_quant:
        return NF4Tensor(
            packed, *quantize_scales(absmax), weight.shape, weight.dtype, block_size, kind
        )
    return NF4Tensor(packed, absmax, None, None, weight.shape, weight.dtype, block_size, kind)


def place_plainly(scaled: Tensor, book: Codebook) -> Tensor:
    """For each value how many boundaries lie strictly below it: its place among the levels. Ties so go down."""
    places = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    for boundary in book.boundaries:
        places += scaled > boundary
    return places


def place(scaled: Tensor, kind: str) -> Tensor:
    """The same for values in [-1, 1]: look up the cell, then decide with the one boundary that may lie in it.

    Rounding can push a value over the edge of its cell by an ulp; the comparison then still decides rightly, since no
    boundary lies that near to an edge without lying on it (tests/nf4/test_tensor.py).
    """
    first, boundary = cell_tables(kind, scaled.device)
    values = scaled.reshape(-1)
    cell = values.mul(CELLS).add_(CELLS).int()  # 0 to 1024
    above = values > boundary.index_select(0, cell)
    return first.index_select(0, cell).add_(above.view(torch.uint8))


def pack(places: Tensor, book: Codebook) -> Tensor:
    """Codes of an even number of places, two a byte, the first in the high half."""
    ordered = book.codes == tuple(range(len(book.codes)))
    codes = (
        places
        if ordered
        else torch.tensor(book.codes, dtype=torch.uint8, device=places.device)[places.long()]
    )
    return torch.add(codes[1::2], codes[::2], alpha=16)


@cache
def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values that an 8-bit scale may take: seven decades, each twice as finely divided as the one below.

    For i = 0…6 the midpoints of linspace(0.1, 1, 2^i + 1) times 10^(i-6), with both signs, and 0 and 1
    (8-bit optimizers, arXiv 2110.02861, section 2.2).
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        values += (10 ** (i - 6) * middles).tolist() + (-(10 ** (i - 6)) * middles).tolist()
    return torch.tensor(sorted(values)).to(device)


@cache
def dynamic_lookup(device: torch.device) -> Tensor:
    """The nearest map value's code for 65,536 even steps from -1 to 1: the table that bitsandbytes' CPU kernel reads."""
    steps, values = (
        torch.linspace(-1, 1, 65536, dtype=torch.float64),
        dynamic_map(torch.device("cpu")).double(),
    )
    return torch.bucketize(steps, (values[:-1] + values[1:]) / 2).to(device, torch.uint8)


def quantize_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantization of (blocks,) scales: 8-bit codes, a float32 for each 256 of them, the mean, taken off first.

    Raises ``ValueError`` for scales so large that the sum of them overflows.
    """
    offset = absmax.mean()
    if not torch.isfinite(offset):
        raise ValueError(
            "the sum of the blocks' scales overflows float32: quantize such weights with double_quant=False"
        )
    padded = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % SCALE_BLOCK)).view(
        -1, SCALE_BLOCK
    )
    absmax2 = padded.abs().amax(dim=1)
    inverse = 1.0 / absmax2
    # all scales alike, where bitsandbytes writes code 0 too, or as good as (where it does not)
    flat = torch.isinf(inverse)
    # in [-1, 1]: x · (1/x) never rounds above 1
    scaled = padded * inverse.masked_fill(flat, 0.0)[:, None]
    codes = dynamic_lookup(absmax.device)[((scaled + 1) * 0.5 * 65535 + 0.5).long()]
    return codes.masked_fill_(flat[:, None], 0).view(-1)[: len(absmax)].clone(), absmax2, offset


def check_quantizable(weight: Tensor) -> None:
    """Raise unless this is a floating-point tensor with at least one value."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"quantize needs a floating-point tensor, got {getattr(weight, 'dtype', type(weight).__name__)}"
        )
    if weight.numel() == 0:
        raise ValueError(f"quantize needs at least one value, got shape {tuple(weight.shape)}")


def check_finite(absmax: Tensor, weight: Tensor) -> None:
    """Raise ``ValueError`` that names the first NaN or infinity of the weight: it is its block's largest magnitude."""
    if not torch.isfinite(absmax).all():
        where = tuple((~torch.isfinite(weight.float())).nonzero()[0].tolist())
        raise ValueError(
            f"quantize needs finite float32 values, got {weight[where].item()} at {where}; repair it first"
        )


def check_block_size(block_size: int) -> None:
    """Raise unless this is a power of two from 32 to 4096."""
    if not isinstance(block_size, int) or block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be a power of two from 32 to 4096, got {block_size!r}")
