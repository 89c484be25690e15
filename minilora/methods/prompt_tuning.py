"""Prompt tuning: k trained vectors before every text, and nothing else.

    x = [P; E[tokens]]        P (k, d) trained, E the frozen embedding

The model reads P as if it were k tokens, so P can say whatever words can say, and a little more:
its rows need not be any token's vector. It trains k d numbers, a few kilobytes.

Source: arXiv 2104.08691, section 2; section 3.2 compares the three starts. RANDOM is PEFT's
default, N(0, 1): 7.6 times the spread of our base's embeddings (0.133). SAMPLE_VOCAB starts at the
vectors of random tokens, TEXT at those of a text, which helps (huggingface/peft #2816 asks for it
as the default).

Can: PEFT's files; rows of one batch with different prompts, in principle, since it is input.
Cannot: merge (it is no weight); pack several texts into a row; be free: every text gets k tokens
longer, in attention and in the cache.

**Positions.** P stands at 0 … k−1 and the text begins at k, in every row. A left-padded row has its
padding between the two, which must not count: positions come from the mask. PEFT 0.21 counts it
in ``generate``, so an answer depends on the neighbours' lengths (huggingface/peft #1093).

Left out: soft prompts in the middle of a text, encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_whole
from ..lora.adapter_config import AttachedConfig
from ..lora.attached import Attached
from .streams import check_room, check_text, decoder_of, has_past

STARTS = ("RANDOM", "SAMPLE_VOCAB", "TEXT")


@dataclass(frozen=True)
class PromptTuningConfig(AttachedConfig):
    """Prompt tuning's settings, with PEFT's names (arXiv 2104.08691).

    - ``num_virtual_tokens``: k, the rows before each text.
    - ``prompt_tuning_init``: ``"RANDOM"``, ``"SAMPLE_VOCAB"``, or ``"TEXT"`` with
      ``prompt_tuning_init_text``, which the model's own tokenizer reads, repeated or cut to k.

    Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> minilora.inject(model, PromptTuningConfig(num_virtual_tokens=4)).trainable
    512
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    num_virtual_tokens: int
    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None

    def __post_init__(self) -> None:
        check_whole("num_virtual_tokens", self.num_virtual_tokens, 1)
        if self.prompt_tuning_init not in STARTS:
            words = ", ".join(map(repr, STARTS))
            raise ValueError(
                f"prompt_tuning_init must be one of {words}, got {self.prompt_tuning_init!r}"
            )
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise ValueError(
                f"prompt_tuning_init={self.prompt_tuning_init!r} with prompt_tuning_init_text="
                f"{self.prompt_tuning_init_text!r}: 'TEXT' needs a text, and only it takes one"
            )

    def build(self, model: nn.Module) -> dict[tuple[str, str], Attached]:
        """One soft prompt in the decoder."""
        path, decoder = decoder_of(model, "prompt tuning")
        check_room(self.num_virtual_tokens, decoder, "a soft prompt")
        return {(path, "soft_prompt"): SoftPrompt(self.first_rows(model, decoder))}

    def first_rows(self, model: Any, decoder: Any) -> Tensor:
        """P before training, (k, d), in float32. Draws as PEFT does: RANDOM first, in any case."""
        table = decoder.embed_tokens.weight
        k = self.num_virtual_tokens
        rows = torch.randn(k, table.shape[1])
        if self.prompt_tuning_init == "RANDOM":
            return rows.to(table.device)
        if self.prompt_tuning_init == "SAMPLE_VOCAB":
            ids = torch.randint(0, len(table), (k,))
        else:
            text = model.tokenizer.encode(self.prompt_tuning_init_text)
            ids = torch.tensor((text * (1 + k // len(text)))[:k])
        return table.detach()[ids.to(table.device)].float()

    def fields(self, model: nn.Module) -> dict[str, Any]:
        """As PEFT writes them."""
        _, decoder = decoder_of(model, "prompt tuning")
        config = decoder.config
        return {
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_transformer_submodules": 1,
            # a text would make PEFT ask for a tokenizer; the rows are in the file
            "prompt_tuning_init": "RANDOM",
        }


class SoftPrompt(Attached):
    """``[P; E[tokens]]`` in place of ``E[tokens]``, and the last states without P's.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model, PromptTuningConfig(4))
    >>> model(torch.tensor([[5, 6, 7]])).shape[1]
    3
    """

    why_not_mergeable = "a soft prompt is input, not a weight"
    puts_rows_before = True
    neutral: ClassVar[Mapping[str, float | None]] = {"rows": None}  # vectors as a token's

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows.clone())  # (k, d)
        self.put = False  # whether this pass has the rows

    def hook(self, host: nn.Module) -> None:
        """Before and after the decoder."""
        self.handles = [
            host.register_forward_pre_hook(self.before, with_kwargs=True),
            host.register_forward_hook(self.after),
        ]

    def before(self, decoder: Any, arguments: Any, named: Any) -> Any:
        """(batch, time) ids to (batch, k + time, d) vectors; k ones before the mask."""
        ids, segments, cache, vectors = (*arguments, named.get("inputs_embeds"))[:4]
        x = decoder.embed_tokens(ids) if vectors is None else vectors
        (batch, time, _), k = x.shape, len(self.rows)
        self.put = self.enabled and not (cache is not None and has_past(cache, batch))
        if not self.put:
            return None
        check_text(k, time, segments, decoder, "a soft prompt")
        x = torch.cat([self.rows.to(x.dtype).expand(batch, -1, -1), x], dim=1)
        segments = None if segments is None else F.pad(segments, (k, 0), value=1)
        return (None, segments, cache, x), {}

    def after(self, decoder: Any, arguments: Any, states: Tensor) -> Tensor:
        """(batch, k + time, d) to (batch, time, d)."""
        return states[:, len(self.rows) :] if self.put else states

    def tensors(self) -> dict[str, Tensor]:
        """P, by PEFT's name."""
        return {"prompt_embeddings": self.rows}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """P of a file."""
        self.rows.copy_(tensors["prompt_embeddings"])

    def __repr__(self) -> str:
        return f"SoftPrompt({len(self.rows)} x {self.rows.shape[1]})"
