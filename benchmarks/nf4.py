"""How fast are four bits, and how exact? Square matrices: ours, bitsandbytes', torchao's.

    python -m benchmarks.nf4 [--sizes 256 768 1024 2048 4096] [--rows 1 4 16] [--device cpu]
    MINILORA_KERNEL=off python -m benchmarks.nf4        what "minilora" is without the kernel

Two results. ``nf4``: quantizing and dequantizing, with bits a weight and the error; above 1 in the
ratio is slower than bitsandbytes. ``nf4_kernel``, on a CPU: every variant of the compiled kernel
that this processor has, on one thread and on ``--threads``, dequantizing beside bitsandbytes and
multiplying a few rows beside a plain float32 Linear (above 1 is slower than that).

The two results dequantize into different memory. A tensor above 32 MB (4096²) comes fresh from the
system, page by page. That is what a caller waits for, so ``nf4`` has it: bitsandbytes waits for
16,385 pages of 4 KB a call. We ask for pages of 2 MB, wait for 544 where Linux has them to give,
and for as many as bitsandbytes, or longer, where memory is in pieces. A ratio there says more about
pages than about loops. So ``nf4_kernel`` keeps freed memory (``keep_memory``): nobody waits for
pages.

Bytes and values are asserted equal to bitsandbytes', and products to lie within a bound, before
anything is timed. torchao's format differs (its scales are int8, in blocks of their own), so its
error and its bits stand beside its time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from minilora import NF4Linear, nf4
from minilora.nf4 import kernel

from .common import Row, measure, options, rows_of, save
from .tables import counted

try:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
except ImportError:  # with torchao installed it takes part
    to_nf4 = None

OURS, BITSANDBYTES, TORCHAO = "minilora", "bitsandbytes", "torchao"
LINEAR, TENSORS, WHOLE = "float32 Linear", "minilora, tensors", "minilora, dequantize and multiply"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SETTINGS: dict[str, Any] = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}


@dataclass(frozen=True)
class Contestant:
    """How a library quantizes and dequantizes, and which tensors it keeps."""

    quantize: Callable[[Tensor], Any]
    dequantize: Callable[[Any], Tensor]
    parts: Callable[[Any], Sequence[Tensor]]


CONTESTANTS = {
    OURS: Contestant(nf4.quantize, lambda q: q.dequantize(), lambda q: list(q.tensors.values())),
    BITSANDBYTES: Contestant(
        lambda weight: quantize_4bit(weight, **SETTINGS),
        lambda q: dequantize_4bit(*q),
        lambda q: (q[0], q[1].absmax, q[1].state2.absmax, q[1].offset),
    ),
}
if to_nf4 is not None:
    CONTESTANTS[TORCHAO] = Contestant(
        to_nf4,
        lambda q: q.get_original_weight(),
        lambda q: (q.quantized_data, q.quantized_scalers, q.quantization_factor, q.scaler_mean),
    )


def compare(width: int, dtype: torch.dtype, seconds: float, device: str) -> list[Row]:
    """Rows for quantizing and dequantizing one matrix, with bits a weight and the error (rms)."""
    torch.manual_seed(0)
    weight = torch.randn(width, width, dtype=dtype, device=device)
    packed = {name: who.quantize(weight) for name, who in CONTESTANTS.items()}
    floats = {name: who.dequantize(packed[name]) for name, who in CONTESTANTS.items()}
    assert torch.equal(packed[OURS].packed, packed[BITSANDBYTES][0].flatten())
    assert torch.equal(floats[OURS], floats[BITSANDBYTES])
    runs: dict[str, dict[str, Callable[[], Any]]] = {"quantize": {}, "dequantize": {}}
    quality = {}
    for name, who in CONTESTANTS.items():
        runs["quantize"][name] = partial(who.quantize, weight)
        runs["dequantize"][name] = partial(who.dequantize, packed[name])
        stored = sum(part.nbytes for part in who.parts(packed[name]))
        rmse = (floats[name].float() - weight.float()).square().mean().sqrt().item()
        quality[name] = {"bits": 8 * stored / width**2, "rmse": rmse}
    rows, kind = [], str(dtype).removeprefix("torch.")
    for what, contestants in runs.items():
        times = measure(contestants, seconds, 7, device)
        rows += rows_of(times, BITSANDBYTES, what=what, width=width, dtype=kind)
    return [{**row, **quality[row["contestant"]]} for row in rows]


def variants() -> dict[str, kernel.Kernel | None]:
    """Our contestants: each variant of the kernel that this processor has, and none."""
    best = kernel.load("", kernel.LIBRARY)[1].variant
    names = kernel.VARIANTS[: kernel.VARIANTS.index(best) + 1] if best else ()
    loaded = {f"{OURS}, {name}": kernel.load(name, kernel.LIBRARY)[0] for name in reversed(names)}
    return {**loaded, TENSORS: None}


def with_kernel(chosen: kernel.Kernel | None, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call by this variant, whatever the environment says."""
    chosen_and_why = chosen, kernel.Status(chosen and chosen.variant, "benchmarks.nf4")

    def forced() -> Any:
        before, kernel.active = kernel.active, lambda: chosen_and_why  # type: ignore[assignment]
        try:
            return run()
        finally:
            kernel.active = before

    return forced


def compare_dequantizing(width: int, dtype: torch.dtype, seconds: float) -> list[Row]:
    """Rows for each variant beside bitsandbytes, on as many threads as torch uses now."""
    torch.manual_seed(0)
    weight = torch.randn(width, width, dtype=dtype)
    ours, theirs = nf4.quantize(weight), quantize_4bit(weight, **SETTINGS)
    runs = {BITSANDBYTES: lambda: dequantize_4bit(*theirs)}
    runs |= {name: with_kernel(which, ours.dequantize) for name, which in variants().items()}
    for name, run in runs.items():
        assert torch.equal(run(), runs[BITSANDBYTES]()), name
    times = measure(runs, seconds)
    setting = {"what": "dequantize", "width": width, "dtype": str(dtype).removeprefix("torch.")}
    return rows_of(times, BITSANDBYTES, threads=torch.get_num_threads(), **setting)


@torch.no_grad()
def compare_products(width: int, rows: int, seconds: float) -> list[Row]:
    """Rows for ``x Ŵᵀ``, x of a few rows: each variant and bitsandbytes beside a float32 Linear."""
    torch.manual_seed(0)
    plain, x = nn.Linear(width, width, bias=False), torch.randn(rows, width)
    four = Linear4bit(width, width, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    data = plain.weight.data.clone()
    four.weight = Params4bit(data, requires_grad=False, quant_type="nf4", compress_statistics=True)
    four, layer = four.to("cpu"), NF4Linear.from_linear(plain)
    plain.weight.data = layer.weight  # the same numbers for all
    loaded = variants()
    runs: dict[str, Callable[[], Any]] = {LINEAR: lambda: plain(x), BITSANDBYTES: lambda: four(x)}
    runs |= {name: with_kernel(which, lambda: layer(x)) for name, which in loaded.items()}
    runs[WHOLE] = with_kernel(next(iter(loaded.values())), lambda: x @ layer.weight.T)
    truth, size = x.double() @ layer.weight.double().T, x.abs() @ layer.weight.abs().T
    for name, run in runs.items():
        assert ((run() - truth).abs() <= width * 2**-24 * size).all(), name
    times = measure(runs, seconds)
    setting = {"what": "product", "width": width, "dtype": "float32", "rows": rows}
    return rows_of(times, LINEAR, threads=torch.get_num_threads(), **setting)


def keep_memory() -> None:
    """Let glibc keep what was freed, so that a large tensor gets pages that are there already."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def kernel_rows(sizes: Sequence[int], rows: Sequence[int], seconds: float) -> Iterator[Row]:
    """All of the second result, on one thread and on all that were asked for."""
    most = torch.get_num_threads()
    each = list(product(sorted({1, most}), sizes))
    for threads, width in each:
        torch.set_num_threads(threads)
        for few in rows:
            yield from compare_products(width, few, seconds)
    keep_memory()
    for threads, width in each:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            yield from compare_dequantizing(width, dtype, seconds)
    torch.set_num_threads(most)


def show(row: Row) -> None:
    """One row as a line."""
    size, ratio = f"{row['width']}² {row['dtype']}", row["ratio"]["median"]
    times = f"{counted(row['rows'], 'row')} of " if "rows" in row else ""
    threads = f" {counted(row['threads'], 'thread')}" if "threads" in row else ""
    name = f"{row['what']} {times}{size},{threads} {row['contestant']}"
    if row["what"] == "product":
        print(f"{name:78}{1e6 * row['seconds']:9.0f} µs, {ratio:6.2f} of the float32 Linear's time")
    else:
        speed = row["width"] ** 2 / row["seconds"] / 1e6
        print(f"{name:78}{speed:9.0f} M weights/s, {1 / ratio:5.2f} × bitsandbytes' speed")


def main() -> None:
    """Every size in float32 and bfloat16; then the kernel's variants."""
    given = options(__doc__, sizes=[256, 768, 1024, 2048, 4096], rows=[1, 4, 16], seconds=1.0)
    # what this processor has, as torch calls it, and what "minilora" is here
    given.instructions = torch.backends.cpu.get_cpu_capability()
    given.kernel = kernel.status().variant
    print(f"instructions: {given.instructions}; kernel: {': '.join(map(str, kernel.status()))}")
    found: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        for width in given.sizes:
            for row in compare(width, dtype, given.seconds, given.device):
                show(row)
                found.append(row)
    save("nf4", found, given, "bitsandbytes", "torchao")
    if given.device == "cpu":
        compared = []
        for row in kernel_rows(given.sizes, given.rows, given.seconds):
            show(row)
            compared.append(row)
        save("nf4_kernel", compared, given, "bitsandbytes")


if __name__ == "__main__":
    main()
