"""FLOPs a token, forward and backward, from shapes alone.

    forward   2 · in · out for each Linear, 2 r (in + out) for its adapter,
              4 · seq · width for attention's two products
    backward  the same again for ∂x, where something earlier learns;
              the same again for ∂W, where W is trained

So a full fine-tune's backward costs twice its forward, and LoRA's about once: a frozen weight needs
no gradient. Attention's backward computes the scores again and has four products: 2.5 times its
forward. Two FLOPs are one multiply-add; a causal mask's zeros are counted, as in
``torch.utils.flop_counter``, which is the oracle in ``tests/ledger/test_estimate.py``.

Left out: norms, activation functions, the softmax, the optimizer's step (all small beside the
products).
"""

from __future__ import annotations

from collections.abc import Iterator

from .activations import Work
from .dimensions import Architecture, LinearShape

# a block's roles in the order of the forward pass; those in one row read the same input
READ_TOGETHER = (
    ("q", "k", "v", "qkv"),
    ("o",),
    ("q'", "k'", "v'"),
    ("o'",),
    ("gate", "up", "gate_up", "experts"),
    ("down",),
)

# the Linears behind which a bottleneck stands, by its kind
BOTTLENECKS = {"houlsby": ("o", "down"), "pfeiffer": ("down",), "parallel": ("down",)}


def flops_a_token(arch: Architecture, work: Work, checkpointing: bool = False) -> tuple[int, int]:
    """(forward, backward) FLOPs a token of a step; ``work.labels`` of its tokens reach the head."""
    forward = backward = again = 0.0
    for linear, grad in input_gradients(arch, work):
        share = work.labels / work.tokens if linear.role == "head" else 1
        product, adapter = 2 * linear.weights, 0
        if (here := work.adapted.get(linear.name)) is not None:
            adapter = here.products * here.r * (linear.in_features + linear.out_features)
            once = 2 * here.r * (linear.in_features + linear.out_features)
            # ∂A, ∂B, ∂h, and ∂x where something earlier learns
            backward += once * here.trains_products + adapter
            backward -= 0 if grad else here.products * here.r * linear.in_features
        trains = work.trains_base or linear.name in work.extras.linears
        backward += share * product * (grad + trains)
        if linear.role in BOTTLENECKS.get(work.beside.kind, ()):
            each = 2 * arch.hidden * work.beside.width  # of its two products
            before = grad or work.learns(linear)
            adapter += 2 * each
            backward += (3 + before) * each
        attention = 0
        if linear.role in ("o", "o'"):
            attention = 4 * (work.seq + work.beside.cached) * linear.in_features
            grad = grad or work.beside.cached > 0
            backward += 2.5 * attention * grad
        forward += share * product + adapter + attention
        if linear.block:
            again += computed_again(arch, work, linear, grad, product + adapter + attention)
    return round(forward), round(backward + (again if checkpointing else 0))


def computed_again(
    arch: Architecture, work: Work, linear: LinearShape, grad: bool, whole: float
) -> float:
    """Of a Linear's ``whole`` forward, what checkpointing computes a second time.

    It stops at the last tensor that the backward pass wants. A down without an adapter saves
    nothing; a bottleneck behind it wants its own first product; a parallel one in a block where
    nothing else learns wants nothing of the MLP.
    """
    one = 2 * arch.hidden * work.beside.width  # a product of a bottleneck
    kind = work.beside.kind
    if kind == "parallel" and linear.role in ("gate", "up", "gate_up") and not grad:
        return 0
    if linear.role != "down" or linear.name in work.adapted:
        return whole
    if kind == "parallel":
        return 2 * one if grad else one
    return 2 * linear.weights + one if kind else 0


def input_gradients(arch: Architecture, work: Work) -> Iterator[tuple[LinearShape, bool]]:
    """Every Linear, and whether its input gets a gradient: whether anything before it learns."""
    grad = work.trains_input
    for name, block in arch.blocks.items():
        linears = [*block, *(experts for experts in arch.experts if experts.block == name)]
        for roles in READ_TOGETHER:
            readers = [linear for linear in linears if linear.role in roles]
            yield from ((linear, grad) for linear in readers)
            grad = grad or any(map(work.learns, readers))
            grad = grad or (bool(work.beside.cached) and "k" in roles)
            grad = grad or any(role in roles for role in BOTTLENECKS.get(work.beside.kind, ()))
    for linear in arch.linears:
        if not linear.block:
            yield linear, grad
            grad = grad or (arch.hidden > 0 and work.learns(linear))
