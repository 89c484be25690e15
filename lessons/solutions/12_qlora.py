"""Solutions of lesson 12."""

import torch


def lean_product(x, weight):
    """x Ŵᵀ with a Ŵ made for the forward and another for the backward; nothing is put on ctx, so nothing is kept."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ weight.dequantize().T

        @staticmethod
        def backward(ctx, grad):
            return grad @ weight.dequantize()

    return Product.apply(x)
