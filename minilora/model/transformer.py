"""A small Llama, written to be read, with Hugging Face's module and tensor names.

One block (RMSNorm, rotary positions, grouped-query attention, SwiGLU), stacked::

    h = h + Attention(RMSNorm(h))
    h = h + MLP(RMSNorm(h))            MLP(x) = W_down (silu(W_gate x) * W_up x)
    logits = W_head RMSNorm(h)         W_head may be the embedding itself ("tied")

Every Linear carries the name it has in ``transformers.LlamaForCausalLM`` (``model.layers.0.self_attn.q_proj`` and so
on), so a state dict moves between the two unchanged. This file knows nothing of LoRA: adapters find it by those names.

Sources: Llama (arXiv 2302.13971) section 2.2; RMSNorm (arXiv 1910.07467) eq. 4; RoPE (arXiv 2104.09864) section 3.4.2 in
the half-split layout of Hugging Face; grouped-query attention (arXiv 2305.13245); SwiGLU (arXiv 2002.05202) section 2.

Left out: scaled RoPE variants, sliding windows, mixture of experts, beam search.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama, under the field names of Hugging Face's ``config.json``.

    Raises ``ValueError`` when the sizes do not fit each other.

    >>> LlamaConfig(hidden_size=64, num_attention_heads=4).head_dim
    16
    """

    vocab_size: int = 2048
    hidden_size: int = 160
    intermediate_size: int = 432
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 0  # 0: one for each attention head
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim == 0:
            if self.hidden_size % max(1, self.num_attention_heads):
                raise ValueError(
                    f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
                )
            object.__setattr__(
                self, "head_dim", self.hidden_size // max(1, self.num_attention_heads)
            )
        sizes = {name: value for name, value in asdict(self).items() if type(value) is int}
        if bad := {name: value for name, value in sizes.items() if value < 1}:
            raise ValueError(f"every size of a Llama must be at least 1, got {bad}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: each key/value head serves a whole group of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary positions turn pairs of numbers"
            )


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) * weight``, the mean taken in float32 (arXiv 1910.07467 eq. 4)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rotary_angles(head_dim: int, theta: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of ``position / theta^(2i/head_dim)``, each (time, head_dim) (arXiv 2104.09864 eq. 15)."""
    frequencies = 1.0 / theta ** (
        torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    )
    angles = torch.outer(positions.float(), frequencies)  # (time, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)  # (time, head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair ``(x[i], x[i + d/2])`` by its angle; ``x`` is (batch, heads, time, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


class KVCache:
    """The keys and values of every past position, so that a new token costs one row instead of the whole prefix."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Positions kept so far."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, kv_heads, new, head_dim) keys and values; give back all of them."""
        if layer in self.layers:
            past_k, past_v = self.layers[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        self.layers[layer] = (k, v)
        return k, v


class Attention(nn.Module):
    """Causal self-attention whose key/value heads are shared by groups of query heads (arXiv 2305.13245)."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        c, self.layer, self.head_dim = config, layer, config.head_dim
        self.groups = c.num_attention_heads // c.num_key_value_heads
        self.q_proj = nn.Linear(
            c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.attention_bias
        )
        self.k_proj = nn.Linear(
            c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias
        )
        self.v_proj = nn.Linear(
            c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias
        )
        self.o_proj = nn.Linear(
            c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        batch, time, _ = x.shape
        split = (batch, time, -1, self.head_dim)
        # (batch, heads, time, head_dim)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), cos, sin)
        # (batch, kv_heads, time, head_dim)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if self.groups > 1:
            k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        if torch.is_autocast_enabled(x.device.type) and x.device.type == "cpu":
            # bf16 attention is slower than fp32 on CPUs (its backward above all), so the core leaves autocast.
            q, k, v = q.float(), k.float(), v.float()
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None and time > 1
                )
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None and time > 1
            )
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1))


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

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # True: keep only each block's input, compute the rest again in backward
        self.gradient_checkpointing = False

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        past, time = (cache.length if cache is not None else 0), input_ids.shape[1]
        x = self.embed_tokens(input_ids)  # (batch, time, hidden)
        positions = torch.arange(past, past + time, device=x.device)
        cos, sin = rotary_angles(self.config.head_dim, self.config.rope_theta, positions)
        mask = attention_mask_4d(attention_mask, past, time, x.device)
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            x = (
                checkpoint(layer, x, cos, sin, mask, cache, use_reentrant=False)
                if again
                else layer(x, cos, sin, mask, cache)
            )
        return self.norm(x)


def attention_mask_4d(
    segments: Tensor | None, past: int, time: int, device: torch.device
) -> Tensor | None:
    """Which key each query may see, (batch, 1, time, past + time) bool; None when plain causal (or one new row) says it all.

    ``segments`` (batch, past + time) holds 0 where there is padding and the same number wherever tokens belong together: a
    0/1 padding mask, or 1, 2, 3 … for examples packed into one row. A token sees its own segment, up to itself, so even a
    padded query sees something (a softmax over nothing would be NaN).
    """
    if segments is None and (past == 0 or time == 1):
        return None
    causal = torch.ones(time, past + time, dtype=torch.bool, device=device).tril(past)
    if segments is None:
        return causal[None, None]
    return (causal & (segments[:, past:, None] == segments[:, None, :]))[:, None]


class Llama(nn.Module):
    """A decoder with a language-model head: token ids (batch, time) in, logits (batch, time, vocab) out.

    ``tokenizer`` is filled by ``load_base``; only ``generate_text`` needs it. ``attention_mask`` (batch, time) is 1 where
    there is a token and 0 where there is padding, on either side: rotary positions are relative, so padding shifts nothing.
    Rows of several packed examples number them 1, 2, 3 … instead. ``model.model.gradient_checkpointing = True`` trades time
    for memory: the same gradients (to the bit) from a fraction of the activations.

    >>> _ = torch.manual_seed(0)
    >>> model = Llama(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1))
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
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Logits (batch, time, vocab) for token ids (batch, time); with a ``cache``, of the new positions only."""
        return self.lm_head(self.model(input_ids, attention_mask, cache))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 64,
        *,
        attention_mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        eos_id: int | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Continue (batch, time) token ids; returns (batch, time + new), rows padded with ``eos_id`` once they ended.

        ``temperature=0`` takes the likeliest token; otherwise a token is drawn from softmax(logits / temperature) over
        the ``top_k`` likeliest, repeatably for a given ``seed``. Dropout is off during the call.
        """
        check_sampling(max_new_tokens, temperature, top_k)
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError(
                "generate continues the last token of each row, so pad on the left: attention_mask ends in 0 somewhere"
            )
        was_training = self.training
        self.eval()
        random = torch.Generator(device=input_ids.device).manual_seed(seed)
        cache = KVCache() if use_cache else None
        ids, mask, new = input_ids, attention_mask, input_ids
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        try:
            for _ in range(max_new_tokens):
                logits = self(new if use_cache else ids, mask, cache)[:, -1]  # (batch, vocab)
                token = sample(logits, temperature, top_k, random)
                if eos_id is not None:
                    token = torch.where(ended, eos_id, token)
                    ended |= token == eos_id
                new = token[:, None]
                ids = torch.cat([ids, new], dim=1)
                if mask is not None:
                    mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
                if eos_id is not None and bool(ended.all()):
                    break
        finally:
            self.train(was_training)
        return ids

    def generate_text(
        self, instruction: str, context: str = "", max_new_tokens: int = 64, **sampling: Any
    ) -> str:
        """The model's answer to an instruction, with an optional context, through the tokenizer's chat form.

        ``sampling`` goes to ``generate``: ``temperature``, ``top_k``, ``seed``. Raises ``ValueError`` without a tokenizer.
        """
        return self.generate_texts([(instruction, context)], max_new_tokens, **sampling)[0]

    def generate_texts(
        self, prompts: list[tuple[str, str]], max_new_tokens: int = 64, **sampling: Any
    ) -> list[str]:
        """Answers to many (instruction, context) pairs in one left-padded batch."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer: load it with load_base(), set model.tokenizer, or call generate() with token ids"
            )
        tok = self.tokenizer
        rows = [tok.encode(tok.prompt(instruction, context)) for instruction, context in prompts]
        longest, device = max(map(len, rows)), self.model.embed_tokens.weight.device
        ids = torch.tensor(
            [[tok.eos_id] * (longest - len(row)) + row for row in rows], device=device
        )
        mask = torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device
        )
        out = self.generate(ids, max_new_tokens, attention_mask=mask, eos_id=tok.eos_id, **sampling)
        return [tok.decode(row[longest:].tolist()).strip() for row in out]


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    """Raise ``ValueError`` on sampling settings that mean nothing."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature != 0 and not 1e-6 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 (greedy) or a number from a millionth up, got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all tokens, got {top_k}")


def sample(
    logits: Tensor, temperature: float, top_k: int | None, random: torch.Generator
) -> Tensor:
    """One token id for each row of (batch, vocab) logits."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        floor = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=random)[:, 0]
