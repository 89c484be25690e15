"""Four bits: the codebook, the packed tensor, the Linear that computes with it, the kernel."""

from importlib import import_module
from typing import Any

from .tensor import NF4Tensor, quantize

__all__ = ["NF4Tensor", "quantize"]


def __getattr__(name: str) -> Any:
    """``nf4.kernel``, imported at its first use: ``python -m minilora.nf4.kernel`` is no copy."""
    if name == "kernel":
        return import_module(".kernel", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
