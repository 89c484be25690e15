"""One layer of the Llama: norm, attention, MLP.

    h = h + Attention(RMSNorm(h))
    h = h + MLP(RMSNorm(h))            MLP(x) = W_down (silu(W_gate x) * W_up x)

Every Linear carries the name it has in ``transformers.LlamaForCausalLM``. decoding.py computes the
same for one new token a row, in fewer calls.

Sources: RMSNorm (arXiv 1910.07467) eq. 4; grouped-query attention (arXiv 2305.13245); SwiGLU (arXiv
2002.05202) section 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .config import LlamaConfig
from .rotary import rotate


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) * weight``, the mean taken in float32 (arXiv 1910.07467 eq. 4)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)  # the same, to the bit
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; groups of query heads share a key/value head (arXiv 2305.13245)."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        d, bias = config.hidden_size, config.qkv_bias
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(d, q_size, bias=bias)
        self.k_proj = nn.Linear(d, kv_size, bias=bias)
        self.v_proj = nn.Linear(d, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, d, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        batch, time, _ = x.shape
        split = (batch, time, -1, self.head_dim)
        # (batch, time, heads, head_dim); k and v have kv_heads
        q, k, v = (project(x).view(split) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (batch, heads, time, head_dim)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.write(self.layer, k, v)
        if self.groups > 1 and time > 1:
            k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        elif self.groups > 1:  # one token: a group's heads take the place of the time axis
            q = q.view(batch, -1, self.groups, self.head_dim)  # (batch, kv_heads, groups, head_dim)
        y = attend(q, k, v, mask, is_causal=mask is None and time > 1)
        y = y.reshape(batch, 1, -1) if time == 1 else y.transpose(1, 2).reshape(batch, time, -1)
        return self.o_proj(y)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """``softmax(q kᵀ / sqrt(head_dim)) v``; ``is_causal``: each query sees the keys up to its own.

    On CPUs bf16 attention is slower than float32, its backward above all: there it leaves autocast.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal
            )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


class MLP(nn.Module):
    """SwiGLU: ``down(silu(gate x) * up x)`` (arXiv 2002.05202 section 2)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        d, hidden, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, hidden, bias=bias)
        self.up_proj = nn.Linear(d, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention and MLP, each behind its norm and added to the stream."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
