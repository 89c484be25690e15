"""Solutions of lesson 12."""

import torch


def lean_product(x, weight):
    """One Ŵ is made for the forward, another for the backward; nothing is put on ctx and kept."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ weight.dequantize().T

        @staticmethod
        def backward(ctx, grad):
            return grad @ weight.dequantize()

    return Product.apply(x)
