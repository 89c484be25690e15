"""The compiled kernel: dequantizing in one pass, and ``x Ŵᵀ`` for a few rows without writing Ŵ.

    python -m minilora.nf4.kernel              which variant is in use, and why
    python -m minilora.nf4.kernel --build      compile it into this checkout with the C compiler

kernel.c says why it is fast. Installing the package compiles it where there is a compiler; without
it everything works as before. ``dequantize`` and ``product`` then do nothing and say so, and their
callers compute with tensors: ``dequantize_by_tensors`` is the definition that the tests compare
with.

``MINILORA_KERNEL`` chooses among ``off``, ``plain``, ``avx2`` and ``avx512``. Unset, it is the best
that the processor has. It is read, and the library loaded, at the first use.

The library takes pointers and sizes and no headers of torch (those take half a minute to compile).
A wrong size would read memory that is not ours, so ``job_for`` checks every tensor before its
address is taken. The threads are torch's own: ``GOMP_parallel`` is the entry into the OpenMP
library that torch loaded, and a second team of threads would compete with the first one for the
cores.

Left out: the same two loops in Triton (there was no GPU to measure them on) and in NEON (ARM runs
the plain C).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from ctypes import c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .codebook import table_of_levels
from .scales import BLOCK_SIZES, SCALE_BLOCK, dynamic_map

SOURCE = Path(__file__).with_name("kernel.c")
LIBRARY = SOURCE.with_name(f"_kernel{sysconfig.get_config_var('EXT_SUFFIX')}")
FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")
SWITCH = "MINILORA_KERNEL"
INTERFACE = 1  # of kernel.c; another number there means that Job has another meaning
VARIANTS = ("plain", "avx2", "avx512")
# With more rows, dequantizing and a matrix product is faster (benchmarks/nf4.py).
FEW_ROWS = {"plain": 2, "avx2": 8, "avx512": 16}
CHUNK = 1 << 18  # weights at a time on their way to another dtype, so that they stay in the cache
CPU = torch.device("cpu")
INPUTS = (torch.float32, torch.bfloat16, torch.float16)  # of a product
ORDINARY = (Tensor, torch.nn.Parameter)  # a subclass may have no memory of its own


class Job(ctypes.Structure):
    """``Job`` in kernel.c, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("packed", "levels", "absmax", "map", "absmax2", "offset")),
        *((name, c_size_t) for name in ("shift", "start", "count")),
        *((name, c_void_p) for name in ("floats", "halves", "x", "bias", "y")),
        *((name, c_size_t) for name in ("rows", "columns", "features", "next", "end", "share")),
    )


class Weight(NamedTuple):
    """A quantized weight; ``parts`` are packed, absmax, absmax2 and offset, as in ``NF4Tensor``."""

    parts: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    block_size: int
    kind: str


class Status(NamedTuple):
    """The variant in use (None: tensors do the work), and why."""

    variant: str | None
    reason: str


@dataclass(frozen=True)
class Kernel:
    """A loaded library, and the variant of it that runs."""

    library: ctypes.CDLL
    variant: str

    def run(self, job: Job) -> None:
        """Do what the job says, on as many threads as torch uses."""
        number = VARIANTS.index(self.variant)
        self.library.nf4_run(ctypes.byref(job), number, team(), torch.get_num_threads())


def status() -> Status:
    """The variant of the kernel that is in use, and why; or why none is.

    Raises ``ValueError`` when ``MINILORA_KERNEL`` names no variant, or one beyond this processor.

    >>> status().variant in (None, "plain", "avx2", "avx512")
    True
    """
    return active()[1]


@cache
def active() -> tuple[Kernel | None, Status]:
    """What this process uses: decided once, at the first use."""
    return load(os.environ.get(SWITCH, ""), LIBRARY)


def load(choice: str, path: Path) -> tuple[Kernel | None, Status]:
    """Load a library for one value of ``MINILORA_KERNEL``; where it cannot be loaded, say why."""
    if choice == "off":
        return None, Status(None, f"{SWITCH}=off")
    if choice not in ("", *VARIANTS):
        names = ", ".join(VARIANTS)
        raise ValueError(f"{SWITCH} must be off, {names} or unset, got {choice!r}")
    remedy = "python -m minilora.nf4.kernel --build compiles it"
    if not path.exists():
        return None, Status(None, f"not compiled ({path.name} is missing): {remedy}")
    try:
        library = ctypes.CDLL(str(path))
        version = (library.nf4_interface(), library.nf4_job_size())
        library.nf4_run.argtypes = (c_void_p, ctypes.c_int, c_void_p, ctypes.c_uint)
        library.nf4_run.restype = None
        best = VARIANTS[library.nf4_best()]
    except (OSError, AttributeError) as error:
        return None, Status(None, f"{path.name} cannot be loaded ({error}): {remedy}")
    if version != (INTERFACE, ctypes.sizeof(Job)):
        return None, Status(None, f"{path.name} is of another version: {remedy}")
    if VARIANTS.index(choice or best) > VARIANTS.index(best):
        raise ValueError(f"{SWITCH}={choice}, but the best on this processor is {best}")
    reason = f"{SWITCH}={choice}" if choice else f"the best on this processor, from {path.name}"
    return Kernel(library, choice or best), Status(choice or best, reason)


def in_use() -> Kernel | None:
    """The kernel, except where operations are recorded: neither a trace nor a compiler sees C."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return None if recorded else active()[0]


@cache
def team() -> int | None:
    """The address of ``GOMP_parallel`` in this process; None where it is missing: one thread."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError, TypeError):  # TypeError: Windows, where None names no library
        return None


def dequantize(weight: Weight, out: Tensor) -> bool:
    """Write all n weights to ``out`` (n,), in its dtype; or return False, having written nothing.

    ``level[code] · scale`` in float32, rounded once: the bits of ``dequantize_by_tensors``.
    """
    kernel = in_use()
    if kernel is None or not is_usable(out, n := out.numel(), out.dtype):
        return False
    if (job := job_for(weight, n)) is None:
        return False
    if out.dtype in (torch.float32, torch.bfloat16):
        job.count = n
        setattr(job, "floats" if out.dtype == torch.float32 else "halves", out.data_ptr())
        kernel.run(job)
        return True
    room = new_floats(min(n, CHUNK))
    if not is_usable(room, min(n, CHUNK), torch.float32):
        return False
    job.floats = room.data_ptr()
    for start in range(0, n, CHUNK):
        job.start, job.count = start, min(CHUNK, n - start)
        kernel.run(job)
        out[start : start + CHUNK] = room[: job.count]
    return True


def product(x: Tensor, bias: Tensor | None, weight: Weight, features: int) -> Tensor | None:
    """``x Ŵᵀ + b``, (…, in) to (…, out), for a few rows on a CPU; None: the caller computes it.

    Products are summed in float32, and the sum is rounded once, to the dtype of x: with x in half
    precision it is nearer to the truth than a product with a weight that was rounded before. No
    gradient flows.
    """
    kernel = in_use()
    if kernel is None or x.dtype not in INPUTS:
        return None
    columns = x.shape[-1]
    rows = x.numel() // columns if columns else 0
    if not 0 < rows <= FEW_ROWS[kernel.variant]:
        return None
    if (job := job_for(weight, features * columns)) is None:
        return None
    floats, y = x.float().contiguous(), new_floats(*x.shape[:-1], features)
    if not is_usable(floats, rows * columns, torch.float32):
        return None
    if not is_usable(y, rows * features, torch.float32):
        return None
    if bias is not None:
        bias = bias.float().contiguous()
        if not is_usable(bias, features, torch.float32):
            return None
        job.bias = bias.data_ptr()
    job.x, job.y = floats.data_ptr(), y.data_ptr()
    job.rows, job.columns, job.features = rows, columns, features
    kernel.run(job)
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def job_for(weight: Weight, n: int) -> Job | None:
    """A job with the addresses of the parts; None unless all fit n weights and lie on the CPU."""
    (packed, absmax, absmax2, offset), block_size, kind = weight
    if block_size not in BLOCK_SIZES:
        return None
    blocks = -(-n // block_size)
    usable = is_usable(packed, -(-n // 2), torch.uint8)
    if absmax2 is None or offset is None:
        usable = usable and is_usable(absmax, blocks, torch.float32)
    else:
        usable = usable and is_usable(absmax, blocks, torch.uint8)
        usable = usable and is_usable(absmax2, -(-blocks // SCALE_BLOCK), torch.float32)
        usable = usable and is_usable(offset, 1, torch.float32)
    if not usable:
        return None
    levels, values = table_of_levels(kind, CPU), dynamic_map(CPU)
    job = Job(packed.data_ptr(), levels.data_ptr(), absmax.data_ptr())
    if absmax2 is not None and offset is not None:
        job.map, job.absmax2, job.offset = values.data_ptr(), absmax2.data_ptr(), offset.data_ptr()
    job.shift = block_size.bit_length() - 1
    job.alive = (levels, values)  # as long as the job is
    return job


def new_floats(*shape: int) -> Tensor:
    """Memory for C to write: float32 on the CPU, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device=CPU)


def is_usable(part: Tensor, n: int, dtype: torch.dtype) -> bool:
    """Whether C may take n values from here: the CPU's memory, in order, at even addresses."""
    return (
        type(part) in ORDINARY
        and not torch._C._are_functorch_transforms_active()  # its tensors have no memory
        and part.dtype is dtype
        and part.numel() == n
        and part.is_cpu
        and part.is_contiguous()
        and (dtype is torch.uint8 or not (part.data_ptr() % part.itemsize or part.is_neg()))
    )


def build(path: Path = LIBRARY) -> Path:
    """Compile kernel.c to a library, by default the one beside it: whole or not at all.

    ``CC`` names the compiler; by default it is the one that compiled Python. Raises
    ``RuntimeError`` with its message when it fails, or when there is none.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(
                f"no C compiler: {error}; set CC, or let pip install --editable . compile it"
            ) from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{error.stderr}") from error
        made.replace(path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Say which variant is in use; with ``--build`` compile first."""
    parser = argparse.ArgumentParser(prog="python -m minilora.nf4.kernel")
    parser.add_argument("--build", action="store_true", help="compile kernel.c into this checkout")
    build_first = parser.parse_args(arguments).build
    try:
        if build_first:
            print(f"compiled {build().name}")
            active.cache_clear()
        variant, reason = status()
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{variant or 'tensors'}: {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
