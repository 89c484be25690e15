"""Text from a language model, one token after the other: greedy, or drawn with a temperature.

    p(token) = softmax(logits / temperature)      over the top_k likeliest tokens

The lower the temperature, the more often the likeliest token is drawn; 0 always takes it. The model
computes the logits after a row's last token, one token is added, and the next round begins. With a
cache it is given the new token only, and finds the keys and values of all earlier ones there.

Rows of different lengths are padded on the left, so that every row ends where its answer begins.

Nothing here knows the transformer. ``Llama`` inherits from ``CausalLM``, as any model can that is
called as ``model(ids, attention_mask, cache)``.

Left out: nucleus sampling (top-p), penalties for repetition, beam search.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class KVCache:
    """Keys and values of all past positions: a new token costs one row, not the whole prefix."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Positions kept so far."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, kv_heads, new, head_dim) keys and values; return those of all positions."""
        if layer in self.layers:
            past_k, past_v = self.layers[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        self.layers[layer] = (k, v)
        return k, v


class CausalLM(nn.Module):
    """A model that gives the next token's logits, and so can continue ids and answer in words."""

    tokenizer: Any = None

    def logits_at(self, ids: Tensor, labelled: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (labels, vocab) of token ids (rows, time) where ``labelled`` (rows, time) is True.

        ``segments`` numbers the examples of packed rows: a token sees its own example only. What
        training asks of a model.
        """
        return self(ids, segments)[labelled]

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
        """Continue (batch, time) token ids; returns (batch, time + new).

        ``temperature=0`` takes the likeliest token; otherwise a token is drawn from
        softmax(logits / temperature) over the ``top_k`` likeliest, the same for the same ``seed``.
        A row that has ended is filled up with ``eos_id``. Dropout is off during the call. Raises
        ``ValueError`` on settings that mean nothing, and on rows that are padded on the right.
        """
        check_sampling(max_new_tokens, temperature, top_k)
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError(
                "generate continues the last token of each row, but attention_mask ends in "
                f"{attention_mask[:, -1].tolist()}: pad on the left, so that each row ends in 1"
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
        """The answer to an instruction, with an optional context, in the tokenizer's chat form.

        ``sampling`` goes to ``generate``: ``temperature``, ``top_k``, ``seed``. Raises
        ``ValueError`` without a tokenizer.
        """
        return self.generate_texts([(instruction, context)], max_new_tokens, **sampling)[0]

    def generate_texts(
        self, prompts: list[tuple[str, str]], max_new_tokens: int = 64, **sampling: Any
    ) -> list[str]:
        """Answers to many (instruction, context) pairs, computed as one left-padded batch."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer: load it with load_base(), set model.tokenizer, "
                "or call generate() with token ids"
            )
        tok = self.tokenizer
        rows = [tok.encode(tok.prompt(instruction, context)) for instruction, context in prompts]
        ids, mask = pad_left(rows, tok.eos_id, next(self.parameters()).device)
        out = self.generate(ids, max_new_tokens, attention_mask=mask, eos_id=tok.eos_id, **sampling)
        return [tok.decode(row[ids.shape[1] :].tolist()).strip() for row in out]


def pad_left(rows: list[list[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest) that end together, and a mask that is 0 where ``fill`` stands."""
    longest = max(map(len, rows))
    ids = [[fill] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    """Raise ``ValueError`` on sampling settings that mean nothing."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature != 0 and not 1e-6 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 (greedy) or a finite number of at least 1e-6, got {temperature}"
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
        floor = logits.topk(top_k, dim=-1).values[:, -1:]  # (batch, 1)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=random)[:, 0]
