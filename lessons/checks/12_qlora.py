"""Checkers of lesson 12. A stand-in for the codes notes how long each float copy of it lives."""

import weakref

import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


class Codes:
    """A weight that hands out fresh float copies and watches them."""

    def __init__(self, weight):
        self.hidden, self.shape, self.handed = weight.tolist(), weight.shape, []

    def dequantize(self):
        """A fresh Ŵ (out, in)."""
        fresh = torch.tensor(self.hidden)
        self.handed.append(weakref.ref(fresh.untyped_storage()))
        return fresh

    @property
    def alive(self):
        """How many copies are still in memory."""
        return sum(copy() is not None for copy in self.handed)


@cases(
    first={"leading": [2, 3], "size_in": 5, "size_out": 3, "seed": 0},
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    size_in=st.integers(1, 6),
    size_out=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def check_lean_product(answer, leading, size_in, size_out, seed):
    """The product, its gradient by autograd on plain floats, and what is alive in between."""
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(size_out, size_in, generator=random)
    x = torch.randn(*leading, size_in, generator=random)
    above = torch.randn(*leading, size_out, generator=random)
    case = f"x {tuple(x.shape)} and a weight of {(size_out, size_in)}"
    codes, leaf, right = Codes(W), x.clone().requires_grad_(), x.clone().requires_grad_()
    y, right_y = answer(leaf, codes), right @ W.T
    right_y.backward(above)
    close(y, right_y, what="y", case=case)
    if not y.requires_grad:
        raise Wrong(
            f"y has no gradient to x for {case}: x.grad stays empty, a right answer has "
            f"{tuple(x.shape)} numbers there"
        )
    if codes.alive:
        raise Wrong(
            f"between forward and backward a float copy of Ŵ {(size_out, size_in)} is alive, "
            f"{4 * W.numel()} bytes, for {case}; a right answer keeps none and dequantizes again"
        )
    try:
        y.backward(above)
    except RuntimeError as error:
        shape = tuple(above.shape)
        raise Wrong(f"the backward fails for {case}, a gradient of {shape}: {error}") from error
    close(leaf.grad, right.grad, what="∂x", case=case)


def as_function(forward, backward):
    """A Function from two plain functions of (ctx, tensor, weight)."""

    def answer(x, weight):
        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return forward(ctx, x, weight)

            @staticmethod
            def backward(ctx, grad):
                return backward(ctx, grad, weight)

        return Product.apply(x)

    return answer


def product(ctx, x, weight):
    """The right forward."""
    return x @ weight.dequantize().T


def product_that_keeps(ctx, x, weight):
    """Ŵ is put on ctx."""
    ctx.floats = weight.dequantize()
    return x @ ctx.floats.T


def product_that_saves(ctx, x, weight):
    """Ŵ is saved in the ordinary way."""
    floats = weight.dequantize()
    ctx.save_for_backward(floats)
    return x @ floats.T


def first_row_only(ctx, grad, weight):
    """The gradient of the first row for all."""
    return (grad.reshape(-1, grad.shape[-1])[:1] @ weight.dequantize()).expand(*grad.shape[:-1], -1)


WRONG = {
    "lean_product": {
        "written plainly": lambda x, weight: x @ weight.dequantize().T,
        "kept on ctx": as_function(product_that_keeps, lambda ctx, grad, weight: grad @ ctx.floats),
        "saved for the backward": as_function(
            product_that_saves, lambda ctx, grad, weight: grad @ ctx.saved_tensors[0]
        ),
        "transposed": as_function(product, lambda ctx, grad, weight: grad @ weight.dequantize().T),
        "no gradient to x": lambda x, weight: x.detach() @ weight.dequantize().T,
        "gradient of the first row": as_function(product, first_row_only),
        "halved": as_function(product, lambda ctx, grad, weight: 0.5 * grad @ weight.dequantize()),
    }
}
