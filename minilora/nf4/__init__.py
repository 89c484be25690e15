"""Four bits: sixteen levels, blocks with a scale each, and a Linear that computes with them.

In reading order:

    codebook.py        the sixteen levels of NF4, FP4 and int4, and the cells around them
    tensor.py          quantize, pack, dequantize: bitsandbytes' bytes, double quantization too
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
__getattr__, __dir__ = lazy_imports(__name__)
