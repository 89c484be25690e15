"""A small Llama, written to be read, with Hugging Face's module and tensor names.

One block (RMSNorm, rotary positions, grouped-query attention, SwiGLU), stacked::

    h = h + Attention(RMSNorm(h))
    h = h + MLP(RMSNorm(h))            MLP(x) = W_down (silu(W_gate x) * W_up x)
    logits = W_head RMSNorm(h)         W_head may be the embedding itself ("tied")

Every Linear carries the name it has in ``transformers.LlamaForCausalLM``
(``model.layers.0.self_attn.q_proj`` and so on), so a state dict moves between the two unchanged.
Nothing here knows LoRA: adapters find the modules by those names. One layer is in blocks.py.

Three other families are a Llama but for one change, and are this model too: Mistral sees a sliding
window of the last tokens, Qwen 2 has biases on q, k and v, Qwen 3 an RMSNorm on each head of q and
k. Both Qwens may give some of their layers a window.

Sources: Llama (arXiv 2302.13971) section 2.2; RMSNorm (arXiv 1910.07467) eq. 4; grouped-query
attention (arXiv 2305.13245); SwiGLU (arXiv 2002.05202) section 2; Mistral's window (arXiv
2310.06825) section 2; Qwen 2 (arXiv 2407.10671) section 2.2; Qwen 3 (arXiv 2505.09388) section 2.

Left out: a cache that forgets what no window reaches any more, mixture of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import Block, RMSNorm
from .cache import KVCache
from .config import LlamaConfig
from .decoding import Step, can_step, is_plain
from .generation import CausalLM
from .rotary import rotary_angles


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
            got = "neither" if input_ids is None else "both"
            raise ValueError(f"expected token ids or embeddings, one of the two, got {got}")
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

    def stepper(self, cache: Any, new: int) -> Callable[[Tensor], Tensor] | None:
        """As in ``CausalLM``: the layers in fewer calls (decoding.py), where they are plain."""
        own = type(self).next_logits is Llama.next_logits and "next_logits" not in vars(self)
        if not own or type(cache) is not KVCache or not is_plain(self.model, Decoder):
            return None
        return Step(self.model, self.lm_head, cache, new) if can_step(self.model) else None
