"""A small Llama, written to be read, with Hugging Face's module and tensor names.

One block (RMSNorm, rotary positions, grouped-query attention, SwiGLU), stacked::

    h = h + Attention(RMSNorm(h))
    h = h + MLP(RMSNorm(h))            MLP(x) = W_down (silu(W_gate x) * W_up x)
    logits = W_head RMSNorm(h)         W_head may be the embedding itself ("tied")

Every Linear carries the name it has in ``transformers.LlamaForCausalLM``
(``model.layers.0.self_attn.q_proj`` and so on), so a state dict moves between the two unchanged.
This file knows nothing of LoRA: adapters find its modules by those names.

Three other families are a Llama but for one change, and are this model too: Mistral sees a sliding
window of the last tokens, Qwen 2 has biases on q, k and v, Qwen 3 an RMSNorm on each head of q and
k. Both Qwens may give some of their layers a window.

Sources: Llama (arXiv 2302.13971) section 2.2; RMSNorm (arXiv 1910.07467) eq. 4; grouped-query
attention (arXiv 2305.13245); SwiGLU (arXiv 2002.05202) section 2; Mistral's window (arXiv
2310.06825) section 2; Qwen 2 (arXiv 2407.10671) section 2.2; Qwen 3 (arXiv 2505.09388) section 2.

Left out: a cache that forgets what no window reaches any more, mixture of experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cache import KVCache
from .config import LlamaConfig
from .generation import CausalLM
from .rotary import rotary_angles, rotate


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


class Decoder(nn.Module):
    """Embedding, blocks, last norm: what Hugging Face keeps under ``model.``."""

    new_cache = KVCache  # for a prefix, which stands in a cache

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # True: keep only each block's input, compute the rest again in backward
        self.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor | None,
        segments: Tensor | None,
        cache: KVCache | None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected token ids or embeddings, one of the two")
        # (batch, time, hidden)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        (batch, time, _), device, config = x.shape, x.device, self.config
        windows = [config.window(i) for i in range(len(self.layers))]
        if cache is None:
            positions = positions_of(segments, time, device)
            masks = {w: attention_mask_4d(segments, time, device, w) for w in set(windows)}
        else:
            positions = cache.open(batch, time, segments, device)
            masks = {w: cache.mask(w, x.dtype) for w in set(windows)}
        cos, sin = rotary_angles(config.head_dim, config.rope_theta, positions, config.rope_scaling)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer, window in zip(self.layers, windows, strict=True):
            if recompute:
                x = checkpoint(layer, x, cos, sin, masks[window], cache, use_reentrant=False)
            else:
                x = layer(x, cos, sin, masks[window], cache)
        if cache is not None:
            cache.close()
        return self.norm(x)


def positions_of(segments: Tensor | None, time: int, device: torch.device) -> Tensor:
    """The place of each token in its row, (batch or 1, time); padding is not counted."""
    if segments is None:
        return torch.arange(time, device=device)[None]
    return ((segments != 0).cumsum(dim=1) - 1).clamp(min=0)


def attention_mask_4d(
    segments: Tensor | None, time: int, device: torch.device, window: int | None = None
) -> Tensor | None:
    """Which token each token may see, (batch or 1, 1, time, time) bool; None for plain causal.

    ``segments`` (batch, time) holds 0 for padding and one number for all tokens that belong
    together: it may be a 0/1 padding mask, or 1, 2, 3 … for examples packed into one row. A token
    sees its own segment, up to itself, and with a ``window`` the last so many tokens only. So even
    a padded query sees something, itself: a softmax over nothing would be NaN. With a cache the
    mask comes from there.
    """
    window = window if window is not None and window < time else None
    if segments is None and window is None:
        return None
    causal = torch.ones(time, time, dtype=torch.bool, device=device).tril()
    if window is not None:
        causal = causal.triu(1 - window)
    if segments is None:
        return causal[None, None]
    return (causal & (segments[:, :, None] == segments[:, None, :]))[:, None]


class Llama(CausalLM):
    """A decoder with a head: token ids (batch, time) in, logits (batch, time, vocab) out.

    ``generate``, ``generate_text`` and ``generate_texts`` are those of ``CausalLM``; texts need a
    ``tokenizer``, which ``load_base`` sets. ``model.model.gradient_checkpointing = True`` trades
    time for memory: the same gradients, to the bit, from a fraction of the activations.

    >>> _ = torch.manual_seed(0)
    >>> model = Llama(LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 32])
    """

    def __init__(self, config: LlamaConfig, tokenizer: Any = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab) of token ids (batch, time); with a cache, of the new ones.

        ``attention_mask`` (batch, time) is 1 for a token and 0 for padding, on either side: padding
        counts for no position, so it shifts nothing. Rows of several packed examples number their
        tokens 1, 2, 3 … by example instead. ``inputs_embeds`` (batch, time, hidden) takes the place
        of the ids: soft tokens before a text's own embeddings, for one.
        """
        segments = attention_mask  # a padding mask is one segment; a packed row has several
        return self.lm_head(self.model(input_ids, segments, cache, inputs_embeds))

    def logits_at(self, ids: Tensor, labelled: Tensor, segments: Tensor | None = None) -> Tensor:
        """As in ``CausalLM``; the head, the largest product, computes only the labelled places."""
        return self.lm_head(self.states_at(ids, labelled, segments))

    def states_at(self, ids: Tensor, labelled: Tensor, segments: Tensor | None = None) -> Tensor:
        """The last hidden states (labels, hidden) at the labelled places, which the head reads."""
        return self.model(ids, segments, None)[labelled]

    def next_logits(
        self, ids: Tensor, mask: Tensor | None, cache: KVCache | None, last: Tensor | None = None
    ) -> Tensor:
        """As in ``CausalLM``; the head computes one token a row."""
        hidden = self.model(ids, mask, cache)  # (batch, time, hidden)
        return self.lm_head(hidden[:, -1] if last is None else hidden[torch.arange(len(ids)), last])
