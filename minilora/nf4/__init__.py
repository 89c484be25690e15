"""Four bits: the codebook, the packed tensor, the Linear that computes with it."""

from .tensor import NF4Tensor, quantize

__all__ = ["NF4Tensor", "quantize"]
