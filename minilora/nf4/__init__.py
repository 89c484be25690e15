"""Four bits: sixteen levels, blocks with a scale each, and a Linear that computes with them.

In reading order:

    codebook.py        the sixteen levels of NF4, FP4 and int4, and the cells around them
    scales.py          double quantization: the scales themselves in eight bits
    tensor.py          quantize, pack, dequantize: bitsandbytes' bytes, double quantization too
    kernel.c           the same for the processor at hand: one pass, and a product that never writes
                       the weight
    kernel.py          the compiled kernel, found and checked
    shared_weights.py  weights that somebody else uses too
    linear.py          ``NF4Linear``, whose backward dequantizes again; a model's Linears into four
                       bits and back

Imports only the ground (``level0``).
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .linear import NF4Linear, dequantize_base, quantize_base
    from .tensor import NF4Tensor, quantize

__all__ = ["NF4Linear", "NF4Tensor", "dequantize_base", "quantize", "quantize_base"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
