"""The bytes that autograd keeps for the backward pass, tensor by tensor, from shapes alone.

A Linear keeps its input where its weight is trained or an adapter stands beside it, and nothing
otherwise; an adapter keeps ``h = x Aᵀ`` too. A product keeps both factors, RMSNorm its input and
1/rms, attention q, k, v, its result and one number a row and head, SwiGLU three tensors,
cross-entropy the log-probabilities in float32. None of it is kept where nothing earlier learns. So
the first block of a LoRA model is cheaper than the others, and ``grad`` is followed from block to
block.

With gradient checkpointing (arXiv 1604.06174) the blocks' inputs are kept, and one block's tensors
at a time.

These are the tensors of ``model/transformer.py`` and ``lora/layer.py``, and
``tests/ledger/test_estimate.py`` measures them there. For the other families this is an estimate:
it assumes the kernels usual today (fused attention, GELU and LayerNorm) and no dropout in the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .attached_costs import NOTHING, Beside, bottleneck_bytes
from .dimensions import Architecture, LinearShape
from .extra_costs import NONE, Extras
from .method_costs import AtSite


@dataclass(frozen=True)
class Work:
    """The step to count: tokens, bytes a number of base (``size``) and adapter, who learns."""

    tokens: int
    seq: int
    labels: int  # tokens that have logits and a loss
    size: int
    adapter_size: int
    adapted: Mapping[str, AtSite]  # the Linears that have an adapter, by their names
    trains_base: bool = False
    dropout: bool = False
    trains_norms: bool = False
    beside: Beside = NOTHING
    extras: Extras = NONE

    @property
    def trains_input(self) -> bool:
        """Whether a gradient reaches the first block's input."""
        whole = self.trains_base or self.trains_norms
        return whole or self.beside.rows > 0 or self.extras.trains_embedding

    def learns(self, linear: LinearShape) -> bool:
        """Whether something in this Linear gets a gradient."""
        whole = linear.name in self.extras.linears or linear.name in self.extras.biases
        return self.trains_base or linear.name in self.adapted or whole


@dataclass(frozen=True)
class Kept:
    """Bytes at the moments that can be a step's worst.

    ``at_loss`` is saved for backward when it begins, ``in_block`` in the last block's backward,
    ``at_end`` in the first's. ``loss_passing`` and ``block_passing`` are alive besides: the logits
    with their gradients, or the logits with the block's gradients.
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
    """Bytes that a step keeps for backward; plain shapes keep the inputs of what learns."""
    grad, blocks, widest, inputs, worst = work.trains_input, [], 0, 0, 0
    row = work.tokens * arch.hidden * work.size
    for name, block in arch.blocks.items():
        grad = grad or any(norm.startswith(f"{name}.") for norm in work.extras.norms)
        # the first norm keeps the block's input itself
        shared = (work.size == 4 or not arch.rms) and grad
        size, grad = block_bytes(arch, block, work, grad)
        blocks.append(size - row * (shared and checkpointing))
        # checkpointing keeps a block's input if backward will come back to the block
        inputs += row * grad
        worst = max(worst, inputs + blocks[-1])
        widest = max(widest, *(max(linear.in_features, linear.out_features) for linear in block))
    outside = [linear for linear in arch.linears if not linear.block]
    head = sum(input_bytes([linear], work) for linear in outside) + norm_bytes(arch, work, grad)
    logits = work.labels * sum(linear.out_features for linear in outside if linear.role == "head")
    head += 4 * logits + (8 * work.labels if logits else 0)  # log-probabilities in float32, targets
    always = 8 * work.seq * arch.head_dim if arch.rotary and blocks else 0  # cos, sin
    always += 8 * work.tokens if work.trains_base and arch.hidden else 0  # the embedding's rows
    always += 8 * work.tokens * work.extras.trains_embedding
    always += work.tokens * arch.hidden * work.size * len(work.extras.norms)  # normalized
    if work.beside.cached and blocks:  # the mask over keys that stand before the text
        always += work.seq * (work.seq + work.beside.cached) * work.size
    loss_passing = logits * (work.size + 8)
    block_passing = logits * work.size + 3 * work.tokens * widest * work.size
    at_end = max(blocks, default=0)
    if checkpointing:
        at_loss, in_block, at_end = always + inputs + head, always + worst, at_end + row
    else:
        in_block = always + sum(blocks)
        at_loss = in_block + head
    return Kept(at_loss, in_block, at_end, loss_passing, block_passing)


def block_bytes(
    arch: Architecture, block: list[LinearShape], work: Work, grad: bool
) -> tuple[int, bool]:
    """One block: its bytes, and whether a gradient reaches its output (``grad``: its input)."""
    by_role = {linear.role: linear for linear in block}
    total = 0
    for second in ("", "'"):  # a T5 decoder attends twice
        if f"o{second}" in by_role:
            size, grad = attention_bytes(arch, by_role, second, work, grad)
            total += size
    sizes = work.size, work.adapter_size
    if work.beside.kind == "houlsby":
        total += bottleneck_bytes(work.beside, arch.hidden, work.tokens, sizes, False)
        grad = True
    experts = [each for each in arch.experts if each.block == block[0].block]
    size = sum(expert_bytes(each, work, grad) for each in experts)
    if "down" not in by_role:
        return total + size + norm_bytes(arch, work, grad), grad
    total += size
    stream_is_kept = grad and work.size == 4  # by the norm before the MLP
    size, grad = mlp_bytes(arch, by_role, work, grad)
    if work.beside.kind:
        shared = work.beside.kind == "parallel" and stream_is_kept
        size += bottleneck_bytes(work.beside, arch.hidden, work.tokens, sizes, shared)
    return total + size, grad or bool(work.beside.kind)


def expert_bytes(experts: LinearShape, work: Work, grad: bool) -> int:
    """Of a token's experts: SwiGLU's three tensors, and the products if they train."""
    one = work.tokens * experts.out_features // 3 * work.size
    return 3 * one * grad + one * work.trains_base


def attention_bytes(
    arch: Architecture, by_role: dict[str, LinearShape], second: str, work: Work, grad: bool
) -> tuple[int, bool]:
    """Norm, q, k, v, attention, o."""
    roles = [f"{role}{second}" for role in ("q", "k", "v", "qkv")]
    projections = [by_role[role] for role in roles if role in by_role]
    q_and_k, o = projections[:2], by_role[f"o{second}"]
    total = norm_bytes(arch, work, grad) + input_bytes(projections, work)
    inside = grad or any(map(work.learns, projections)) or work.beside.cached > 0
    if inside:
        # q, k, v, result; log Σ exp
        total += work.tokens * (4 * o.in_features * work.size + 4 * arch.heads)
        # keys and values that stand before each text
        before = work.tokens // work.seq * work.beside.cached
        total += 2 * before * o.in_features * work.size
        if arch.rotary and work.size != 4:  # cos and sin, rounded once for q and once for k
            rounded = sum(grad or work.learns(linear) for linear in q_and_k)
            total += 2 * work.seq * arch.head_dim * work.size * rounded
        if arch.qk_norm:
            widths = sum(linear.out_features for linear in q_and_k)
            total += 4 * work.tokens * (widths + widths // arch.head_dim)
    return total + input_bytes([o], work, shared=inside), inside or work.learns(o)


def mlp_bytes(
    arch: Architecture, by_role: dict[str, LinearShape], work: Work, grad: bool
) -> tuple[int, bool]:
    """Norm, gate and up, their product (or one activation function), down."""
    gate, down = by_role.get("gate"), by_role["down"]
    up = by_role["up"] if "up" in by_role else by_role["gate_up"]
    one = work.tokens * up.out_features * work.size
    readers = [up] if gate is None else [gate, up]
    total = norm_bytes(arch, work, grad) + input_bytes(readers, work)
    up_grad = grad or work.learns(up)
    if up.role == "gate_up":  # two halves: the same three tensors, half as wide
        total += one // 2 * 3 * up_grad
        inside = up_grad
    elif gate is None:
        total += one * up_grad  # the activation function's input
        inside = up_grad
    else:
        gate_grad = grad or work.learns(gate)
        # silu's input and up for the gate's gradient, silu's result for up's
        total += one * (2 * gate_grad + up_grad)
        inside = gate_grad or up_grad
    return total + input_bytes([down], work), inside or work.learns(down)


def input_bytes(readers: list[LinearShape], work: Work, shared: bool = False) -> int:
    """Linears that read one tensor: the tensor once, and each adapter's casts, dropout and h.

    The tensor counts if one of them keeps it and nothing else does already (``shared``).
    """
    width, total, keep = readers[0].in_features, 0, work.trains_base
    for linear in readers:
        keep = keep or linear.name in work.extras.linears
        if (here := work.adapted.get(linear.name)) is None:
            continue
        total += (work.tokens * here.a_token + here.once) * work.adapter_size
        if not here.keeps_input:
            continue
        if work.dropout:  # the mask and the dropped input
            total += 2 * work.tokens * width * work.size
        if work.adapter_size != work.size:  # the adapter computes in its own dtype, on a copy
            total += work.tokens * width * work.adapter_size
        elif not work.dropout:
            keep = True
    return total + (work.tokens * width * work.size if keep and not shared else 0)


def norm_bytes(arch: Architecture, work: Work, grad: bool) -> int:
    """RMSNorm in float32: its input and 1/rms, and the normalized rows where its weight trains.

    LayerNorm: its input, mean and 1/σ.
    """
    if not grad or not arch.hidden:
        return 0
    if not arch.rms:
        return work.tokens * (work.size * arch.hidden + 8)
    normalized = work.size * arch.hidden if work.trains_base or work.trains_norms else 0
    return work.tokens * (4 * arch.hidden + 4 + normalized)
