"""Four bits a weight: NF4, double quantization, and two other codebooks to compare with.

The idea. A block of 64 weights is divided by its largest magnitude, so that all lie in [-1, 1].
Each is replaced by the nearest of 16 levels, and only the level's number is kept: four bits. Evenly
spaced levels would spend most numbers where hardly any weight is; NF4 puts them at quantiles of a
normal distribution, dense near zero, sparse outside, with an exact zero (QLoRA, arXiv 2305.14314,
section 3). ``level0.py`` has the definition in NumPy.

The format of one tensor of n weights:

    packed   uint8    two codes a byte, the even element in the high half   4        bits a weight
    absmax   float32  the largest magnitude of each block of 64             32 / 64         = 0.5
    or, with double quantization (the scales are numbers to be quantized too, scales.py):
    absmax   uint8    absmax - offset in 8 bits of a dynamic map            8 / 64          = 0.125
    absmax2  float32  the largest magnitude of each block of 256 scales     32 / (64 · 256) = 0.002
    offset   float32  the mean of all scales, taken off first               32 / n

4.5 bits a weight, or 4.127. The 0.373 saved are 8% of the tensor; "32 times smaller", as one can
read, is true of nothing in it.

What it costs. A weight is off by at most half the widest gap between levels (0.152) times its
block's absmax; on normal weights the root mean square error is 9.2% of theirs. Every use of the
tensor pays for its dequantization.

What differs. bitsandbytes: nothing, byte for byte, down to multiplying full blocks by 1/absmax but
dividing a partial last one, and to reading the scales' codes from a table of 65,536 entries that is
not always nearest. (Its AVX-512 kernel, 0.50.2, dequantizes wrongly when rows are no multiple of
the block; tests/nf4/test_tensor.py shows it.) torchao: levels rounded to four decimals, scales in
int8 blocks of their own.

How it is fast. Quantizing: a cell of 1/512 holds at most one boundary between two levels, so a
table and one comparison give the code (``place``; ``place_plainly`` is the definition).
Dequantizing: the compiled kernel goes over memory once (kernel.c). Where there is none, a byte is
an index into 256 pairs of levels, in three passes. (A table of 65,536 fours is read half as often
and is slower: it does not stay in the cache.)

Left out: other bit widths, stochastic rounding, error feedback as in GPTQ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .codebook import CELLS, Codebook, cell_tables, codebook, table_of_pairs
from .scales import BLOCK_SIZES, SCALE_BLOCK, dynamic_map, quantize_scales

__all__ = ["NF4Tensor", "quantize"]

PARTS = ("packed", "absmax", "absmax2", "offset")
# weights at a time, so that the work stays in the cache
QUANTIZE_CHUNK, DEQUANTIZE_CHUNK = 1 << 18, 1 << 20


@dataclass(frozen=True)
class NF4Tensor:
    """A tensor in four bits; ``dequantize()`` gives floats back.

    ``packed`` (⌈n/2⌉,) uint8, two codes a byte. ``absmax``: float32 (blocks,), or with double
    quantization the uint8 codes of the dynamic map, to be read with ``absmax2`` float32
    (⌈blocks/256⌉,) and ``offset`` float32 (). ``shape`` and ``dtype`` are those of the original.
    Raises ``ValueError`` when the parts do not fit each other.

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
        shapes = part_shapes(self.shape, self.block_size, self.absmax2 is not None)
        for name, (shape, dtype) in shapes.items():
            part = getattr(self, name)
            if part is None or tuple(part.shape) != shape or part.dtype != dtype:
                given = "nothing" if part is None else f"{tuple(part.shape)} {part.dtype}"
                whole = f"a {tuple(self.shape)} tensor in blocks of {self.block_size}"
                raise ValueError(f"{name} must be {shape} {dtype} for {whole}, got {given}")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that takes memory, by name."""
        parts = ((name, getattr(self, name)) for name in PARTS)
        return {name: part for name, part in parts if part is not None}

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
        """``level[code] · scale`` in float32, rounded to ``dtype``, in the original shape.

        ``dtype`` is the original's by default. The compiled kernel computes it where there is one;
        without it the values have the same bits.
        """
        kernel, n, device = compiled(), math.prod(self.shape), self.packed.device
        out = torch.empty(n, dtype=dtype or self.dtype, device=device)
        parts = (self.packed, self.absmax, self.absmax2, self.offset)
        if not kernel.dequantize(kernel.Weight(parts, self.block_size, self.kind), out):
            dequantize_by_tensors(self, out)
        return out.view(self.shape)


@cache
def compiled() -> ModuleType:
    """kernel.py, imported at the first use: importing minilora shall cost nothing for it."""
    from . import kernel

    return kernel


def dequantize_by_tensors(weight: NF4Tensor, out: Tensor) -> None:
    """The definition: write every ``level[code] · scale``, computed in float32, to ``out`` (n,)."""
    scales, block_size, n = weight.scales(), weight.block_size, len(out)
    whole = n // block_size * block_size
    table = table_of_pairs(weight.kind, out.device)
    room = torch.empty(min(whole, DEQUANTIZE_CHUNK), dtype=torch.float32, device=out.device)
    for start in range(0, whole, DEQUANTIZE_CHUNK):
        end = min(start + DEQUANTIZE_CHUNK, whole)
        values = out[start:end] if out.dtype == torch.float32 else room[: end - start]
        pairs = weight.packed[start // 2 : end // 2].int()
        torch.index_select(table, 0, pairs, out=values.view(torch.complex64))
        blocks = slice(start // block_size, end // block_size)
        values.view(-1, block_size).mul_(scales[blocks, None])
        if out.dtype != torch.float32:
            out[start:end] = values
    if whole < n:  # a last, shorter block
        rest = table.index_select(0, weight.packed[whole // 2 :].int()).view(torch.float32)
        out[whole:] = rest[: n - whole] * scales[-1]


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

    Raises ``TypeError`` for a tensor that is not floating-point; ``ValueError`` for an empty one,
    for values that are not finite in float32 (it names the first), for a block size that is not a
    power of two from 32 to 4096, and for an unknown codebook.

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
        places = place_plainly(rest / absmax[-1], book)
        padded = torch.nn.functional.pad(places, (0, n % 2), value=book.levels.index(0.0))
        packed[whole // 2 :] = pack(padded, book)
    absmax2 = offset = None
    if double_quant:
        absmax, absmax2, offset = quantize_scales(absmax)
    return NF4Tensor(packed, absmax, absmax2, offset, weight.shape, weight.dtype, block_size, kind)


def place_plainly(scaled: Tensor, book: Codebook) -> Tensor:
    """The number of boundaries strictly below each value: its place. Ties go down."""
    places = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    for boundary in book.boundaries:
        places += scaled > boundary
    return places


def place(scaled: Tensor, kind: str) -> Tensor:
    """The same for values in [-1, 1]: look up the cell, then ask the boundary that may be in it.

    Rounding can push a value over the edge of its cell by an ulp. The comparison still decides
    rightly then, since no boundary lies that near to an edge without lying on it
    (tests/nf4/test_tensor.py).
    """
    first, boundary = cell_tables(kind, scaled.device)
    values = scaled.reshape(-1)
    cell = values.mul(CELLS).add_(CELLS).int()  # 0 to 1024
    above = values > boundary.index_select(0, cell)
    return first.index_select(0, cell).add_(above.view(torch.uint8))


def pack(places: Tensor, book: Codebook) -> Tensor:
    """Codes of an even number of places, two a byte, the first in the high half."""
    codes = places
    if book.codes != tuple(range(len(book.codes))):  # FP4
        by_place = torch.tensor(book.codes, dtype=torch.uint8, device=places.device)
        codes = by_place[places.long()]
    return torch.add(codes[1::2], codes[::2], alpha=16)


def check_quantizable(weight: Tensor) -> None:
    """Raise unless this is a floating-point tensor with at least one value."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        given = getattr(weight, "dtype", type(weight).__name__)
        raise TypeError(f"quantize needs a floating-point tensor, got {given}")
    if weight.numel() == 0:
        raise ValueError(f"quantize needs at least one value, got shape {tuple(weight.shape)}")


def check_input(x: Tensor) -> None:
    """Raise ``TypeError`` unless x holds floats, ``ValueError`` while ``torch.jit.trace`` records.

    A trace knows neither a byte's two levels as one complex number nor what C writes.
    """
    if not x.is_floating_point():
        raise TypeError(f"NF4Linear needs a floating-point input, got {x.dtype}")
    if torch.jit.is_tracing():
        raise ValueError("torch.jit.trace cannot record four bits: trace dequantize_base(model)")


def check_finite(absmax: Tensor, weight: Tensor) -> None:
    """Raise ``ValueError`` for the weight's first NaN or infinity: it shows in its absmax."""
    if not torch.isfinite(absmax).all():
        where = tuple((~torch.isfinite(weight.float())).nonzero()[0].tolist())
        raise ValueError(
            f"quantize needs finite float32 values, got {weight[where].item()} at {where}; "
            "repair it first"
        )


def check_block_size(block_size: int) -> None:
    """Raise unless this is a power of two from 32 to 4096."""
    if not isinstance(block_size, int) or block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be a power of two from 32 to 4096, got {block_size!r}")
