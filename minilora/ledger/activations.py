"""What autograd keeps for the backward pass, tensor by tensor, from shapes alone.

A Linear keeps its input where its weight is trained or an adapter stands beside it, and nothing otherwise; an adapter keeps
``h = x Aᵀ`` too. A product keeps both factors, RMSNorm its input and 1/rms, attention q, k, v, its result and one number a
row and head, SwiGLU three tensors, cross-entropy the log-probabilities in float32. None of it is kept where nothing
earlier learns: the first block of a LoRA model is cheaper than the others, so ``grad`` is followed from block to block.

With gradient checkpointing (arXiv 1604.06174) the blocks' inputs are kept, and one block's tensors at a time.

These are the tensors of ``model/transformer.py`` and ``lora/layer.py``, and ``tests/ledger/test_estimate.py`` measures them there. For the other
families the kernels usual today are assumed (fused attention, GELU and LayerNorm; no dropout in the base): an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .dimensions import Architecture, LinearShape


@dataclass(frozen=True)
class Work:
    """What decides the activations: sizes in tokens, bytes a number of base (``size``) and adapter, and who learns."""

    tokens: int
    seq: int
    labels: int  # tokens that have logits and a loss
    size: int
    adapter_size: int
    ranks: Mapping[str, int]  # of the Linears that have an adapter, by their names
    trains_base: bool = False
    dropout: bool = False

    def learns(self, linear: LinearShape) -> bool:
        """Whether something in this Linear gets a gradient."""
        return self.trains_base or linear.name in self.ranks


@dataclass(frozen=True)
class Kept:
    """Bytes at the moments that can be a step's worst: when backward begins, in the last block's backward, in the first's.

    ``at_loss``, ``in_block`` and ``at_end`` are saved for backward then; ``loss_passing`` and ``block_passing`` are alive
    besides: the logits with their gradients, or the logits with the block's gradients.
    """

    at_loss: int
    in_block: int
    at_end: int
    loss_passing: int
    block_passing: int

    @property
    def saved(self) -> int:
        """The most that is saved for backward at one time."""
        return max(self.at_loss, self.in_block)


def kept(arch: Architecture, work: Work, checkpointing: bool = False) -> Kept:
    """Bytes that a step keeps for backward. Shapes without blocks keep the inputs of what learns."""
    grad, blocks, wide, inputs, worst = work.trains_base, [], 0, 0, 0
    row = work.tokens * arch.hidden * work.size
    for block in arch.blocks.values():
        # the first norm keeps the block's input itself
        shared = (work.size == 4 or not arch.rms) and grad
        size, grad = block_bytes(arch, block, work, grad)
        blocks.append(size - row * (shared and checkpointing))
        # what checkpointing keeps of a block: its input, if a backward will come back to it
        inputs += row * grad
        worst = max(worst, inputs + blocks[-1])
        wide = max(wide, *(max(linear.in_features, linear.out_features) for linear in block))
    outside = [linear for linear in arch.linears if not linear.block]
    head = sum(input_bytes([linear], work) for linear in outside) + norm_bytes(arch, work, grad)
    logits = work.labels * sum(linear.out_features for linear in outside if linear.role == "head")
    head += 4 * logits + (8 * work.labels if logits else 0)  # log-probabilities in float32, targets
    always = 8 * work.seq * arch.head_dim if arch.rotary and blocks else 0  # cos, sin
    always += 8 * work.tokens if work.trains_base and arch.hidden else 0  # the embedding's rows
    block_passing = logits * work.size + 3 * work.tokens * wide * work.size
    one_block = max(blocks, default=0)
    if checkpointing:
        return Kept(
            always + inputs + head,
            always + worst,
            one_block + row,
            logits * (work.size + 8),
            block_passing,
        )
    always += sum(blocks)
    return Kept(always + head, always, one_block, logits * (work.size + 8), block_passing)


def block_bytes(
    arch: Architecture, block: list[LinearShape], work: Work, grad: bool
) -> tuple[int, bool]:
    """One block: its bytes, and whether its output carries a gradient, given whether its input does."""
    by_role = {linear.role: linear for linear in block}
    total = 0
    for second in ("", "'"):  # a T5 decoder attends twice
        if f"o{second}" in by_role:
            size, grad = attention_bytes(arch, by_role, second, work, grad)
            total += size
    size, grad = mlp_bytes(arch, by_role, work, grad)
    return total + size, grad


def attention_bytes(
    arch: Architecture, by_role: dict[str, LinearShape], second: str, work: Work, grad: bool
) -> tuple[int, bool]:
    """Norm, q, k, v, attention, o."""
    makers = [
        by_role[f"{role}{second}"]
        for role in ("q", "k", "v", "qkv")
        if f"{role}{second}" in by_role
    ]
    o = by_role[f"o{second}"]
    total = norm_bytes(arch, work, grad) + input_bytes(makers, work)
    inside = grad or any(map(work.learns, makers))
    if inside:
        # q, k, v, result; log Σ exp
        total += work.tokens * (4 * o.in_features * work.size + 4 * arch.heads)
        if arch.rotary and work.size != 4:  # cos and sin rounded anew, for q and for k
            total += (
                2
                * work.seq
                * arch.head_dim
                * work.size
                * sum(grad or work.learns(m) for m in makers[:2])
            )
        if arch.qk_norm:
            total += sum(
                4 * work.tokens * (m.out_features + m.out_features // arch.head_dim)
                for m in makers[:2]
            )
    return total + input_bytes([o], work, shared=inside), inside or work.learns(o)


def mlp_bytes(
    arch: Architecture, by_role: dict[str, LinearShape], work: Work, grad: bool
) -> tuple[int, bool]:
    """Norm, gate and up, their product (or one activation function), down."""
    gate, up, down = by_role.get("gate"), by_role["up"], by_role["down"]
    one = work.tokens * up.out_features * work.size
    total = norm_bytes(arch, work, grad) + input_bytes(
        [x for x in (gate, up) if x is not None], work
    )
    up_grad = grad or work.learns(up)
    if gate is None:
        total += one * up_grad  # the activation function's input
        inside = up_grad
    else:
        gate_grad = grad or work.learns(gate)
        # silu's input and up for the gate's gradient, silu's result for up's
        total += one * (2 * gate_grad + up_grad)
        inside = gate_grad or up_grad
    return total + input_bytes([down], work), inside or work.learns(down)


def input_bytes(readers: list[LinearShape], work: Work, shared: bool = False) -> int:
    """Linears that read one tensor: that tensor once, if any keeps it and nobody has it (``shared``); casts, dropout, h."""
    width, total, keep = readers[0].in_features, 0, work.trains_base
    for linear in readers:
        if linear.name not in work.ranks:
            continue
        if work.dropout:  # the mask and the dropped input
            total += 2 * work.tokens * width * work.size
        if work.adapter_size != work.size:  # the adapter computes in its own dtype, on a copy
            total += work.tokens * width * work.adapter_size
        elif not work.dropout:
            keep = True
        total += work.tokens * work.ranks[linear.name] * work.adapter_size  # h
    return total + (work.tokens * width * work.size if keep and not shared else 0)


def norm_bytes(arch: Architecture, work: Work, grad: bool) -> int:
    """RMSNorm in float32: its input and 1/rms, and the normalized rows where its weight trains. LayerNorm: input, mean, 1/σ."""
    if not grad or not arch.hidden:
        return 0
    if arch.rms:
        return work.tokens * (
            4 * arch.hidden + 4 + (work.size * arch.hidden if work.trains_base else 0)
        )
    return work.tokens * (work.size * arch.hidden + 8)
