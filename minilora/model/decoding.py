"""One new token a row: the layers of blocks.py in few calls.

After the prompt a text grows by one token a row. A small model then spends its time on calls: of
modules, of views, of products that take longer to start than to multiply. ``Step`` computes what
the modules compute, with four savings:

    joined      q, k and v are one product, gate and up another:  x [W_q; W_k; W_v]ᵀ
    transposed  a joined weight is a copy, stored as (in, out): so a few rows are multiplied faster
    added       the product that ends a branch adds the residual as well (addmm)
    the norm    x · √d w / hypot(‖x‖, √(d eps)): RMSNorm in four calls, where torch makes eight

The copies are right only while nobody changes a weight, so a ``Step`` lives for one call of
``generate``. Large weights are not copied: reading them from memory is what they cost.

A Linear, norm or embedding that is more than that (an adapter, four bits, a hook) is called as the
module it is. ``can_step`` says no to anything else unusual, and the modules compute all.

Left out: norms on the heads (Qwen 3), half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..lora.watchers import is_replaced
from .blocks import MLP, Attention, Block, RMSNorm, attend
from .cache import KVCache
from .rotary import rotary_angles

COPIED = 1 << 18  # weights: a larger matrix is not copied
AHEAD = 1024  # places whose angles are computed at once, at most

Rows = Callable[[Tensor], Tensor]  # (rows, in) to (rows, out)


class Step:
    """Logits (rows, vocab) of one new token a row, (rows, 1), whose past is in the cache.

    ``new``: how many tokens a row gets at most.
    """

    def __init__(self, decoder: Any, head: nn.Module, cache: KVCache, new: int):
        config, self.cache, self.embed = decoder.config, cache, decoder.embed_tokens
        self.blocks = [BlockStep(block) for block in decoder.layers]
        self.norm = norm_of(decoder.norm)
        self.head = joined([head]) if is_copied(head) else head  # which gets rows without a time
        self.windows = [config.window(layer) for layer in range(len(self.blocks))]
        self.ahead, self.config = min(new, AHEAD), config
        self.look_ahead()

    def look_ahead(self) -> None:
        """Compute cos and sin of the places up to some tokens after the longest row."""
        config, end = self.config, max(self.cache.lengths) + self.ahead
        places = torch.arange(end, device=self.embed.weight.device)[None]
        angles = rotary_angles(config.head_dim, config.rope_theta, places, config.rope_scaling)
        self.angles = torch.cat(angles, dim=-1)[0, 0]  # (places, cos and sin of head_dim)

    def __call__(self, ids: Tensor) -> Tensor:
        cache, x = self.cache, self.embed(ids)[:, 0]  # (rows, hidden)
        if max(cache.lengths) >= len(self.angles):
            self.look_ahead()
        positions = cache.open(len(ids), 1, None, ids.device)  # (rows or 1, 1)
        cos, sin = F.embedding(positions, self.angles)[:, None].chunk(2, dim=-1)
        masks = {window: cache.mask(window, x.dtype) for window in set(self.windows)}
        for block, window in zip(self.blocks, self.windows, strict=True):
            x = block(x, cos, sin, masks[window], cache)
        cache.close()
        return self.head(self.norm(x))


class BlockStep:
    """One layer: ``Block.forward`` without a time axis."""

    def __init__(self, block: Block):
        attention, mlp = block.self_attn, block.mlp
        self.layer, self.groups = attention.layer, attention.groups
        self.head_dim = attention.head_dim
        self.norm = norm_of(block.input_layernorm)
        self.mlp_norm = norm_of(block.post_attention_layernorm)
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up = joined([mlp.gate_proj, mlp.up_proj])
        self.add_o, self.add_down = added(attention.o_proj), added(mlp.down_proj)

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        rows, groups, d = len(x), self.groups, self.head_dim
        qkv = self.qkv(self.norm(x)).view(rows, -1, 1, d)  # the heads of q, of k, of v
        kv_heads = qkv.shape[1] // (groups + 2)
        heads = groups * kv_heads
        qk = qkv.narrow(1, 0, heads + kv_heads)
        qk = torch.addcmul(qk * cos, qk.roll(d // 2, -1), sin)  # rotate, in a call less
        v = qkv.narrow(1, heads + kv_heads, kv_heads)
        k, v = cache.write(self.layer, qk.narrow(1, heads, kv_heads), v)
        q = qk.narrow(1, 0, heads).view(rows, kv_heads, groups, d)
        x = self.add_o(x, attend(q, k, v, mask, is_causal=False).reshape(rows, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return self.add_down(x, F.silu(gate) * up)


def norm_of(norm: RMSNorm) -> Rows:
    """An RMSNorm of (rows, d): as ‖x‖² = d · mean(x²), it needs one reduction."""
    if not is_plain(norm, RMSNorm):
        return as_rows(norm)
    d = norm.weight.numel()
    weight, least = norm.weight * math.sqrt(d), norm.weight.new_tensor(math.sqrt(d * norm.eps))

    def normalize(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (rows, 1)
        return x / torch.hypot(length, least) * weight

    return normalize


def joined(linears: Sequence[Any]) -> Rows:
    """The outputs of Linears that read the same x, side by side."""
    if not all(map(is_copied, linears)):
        each = [as_rows(linear) for linear in linears]
        return each[0] if len(each) == 1 else lambda x: torch.cat([y(x) for y in each], dim=-1)
    weight = torch.cat([linear.weight for linear in linears]).T.contiguous()  # (in, all out)
    if all(linear.bias is None for linear in linears):
        return lambda x: torch.mm(x, weight)
    bias = torch.cat([bias_of(linear) for linear in linears])
    return lambda x: torch.addmm(bias, x, weight)


def bias_of(linear: nn.Linear) -> Tensor:
    """A Linear's bias, or zeros: a merged BitFit gives one to some of a model's Linears only."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def added(linear: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """``x + linear(y)`` of x (rows, out) and y (rows, in)."""
    if is_plain(linear, nn.Linear) and linear.bias is None:
        weight = linear.weight.T.contiguous() if is_copied(linear) else linear.weight.T
        return lambda x, y: torch.addmm(x, y, weight)
    rows = as_rows(linear)
    return lambda x, y: x + rows(y)


def as_rows(module: Any) -> Rows:
    """A module without its time axis; what is more than a Linear is called with one of length 1."""
    if is_plain(module, nn.Linear):
        weight, bias = module.weight, module.bias
        return lambda x: F.linear(x, weight, bias)
    return lambda x: module(x[:, None])[:, 0]


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a call of this module does what its class does, on weights of float32."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    own = type(module) is kind and not hooks and not is_replaced(module)
    weights = [weight for weight in module._parameters.values() if weight is not None]
    return own and all(type(w) is nn.Parameter and w.dtype is torch.float32 for w in weights)


def is_copied(linear: Any) -> bool:
    """Whether this is a plain Linear whose copy costs little memory."""
    return is_plain(linear, nn.Linear) and linear.weight.numel() <= COPIED


def can_step(decoder: Any) -> bool:
    """Whether ``Step`` computes what the modules would: the layers as written, nobody watching."""
    watched = _has_any_global_hook() or torch._C._is_any_autocast_enabled()
    replayed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if watched or replayed or decoder.embed_tokens.weight.dtype is not torch.float32:
        return False
    return all(
        is_plain(block, Block)
        and is_plain(block.self_attn, Attention)
        and is_plain(block.mlp, MLP)
        and not block.self_attn.qk_norm
        for block in decoder.layers
    )
