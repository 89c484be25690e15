"""Text from a language model, one token after the other.

The model computes the logits after a row's last token, one token is chosen (sampling.py), and the
next round begins. The prompt goes through the model in one pass. With a cache the model is then
given the new token only, and finds the keys and values of all earlier ones there.

Rows of different lengths are padded on the left, so that every row ends where its answer begins.

Nothing here knows the transformer. ``Llama`` inherits from ``CausalLM``, as any model can that is
called as ``model(ids, attention_mask, cache)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.attached import attached_modules, generating
from .cache import KVCache
from .chat import Message
from .own_forms import question
from .sampling import Sampling, ends_of, sample
from .tokenizer_folder import Companions

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class CausalLM(nn.Module):
    """A model that gives the next token's logits, and so can continue ids and answer in words."""

    tokenizer: Tokenizer = None  # type: ignore[assignment]  # for editors; None where none is set
    name_or_path: str = ""  # the folder that it came from
    companions = Companions()  # what else that folder held

    def logits_at(self, ids: Tensor, labelled: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (labels, vocab) of token ids (rows, time) where ``labelled`` (rows, time) is True.

        ``segments`` numbers the examples of packed rows: a token sees its own example only. What
        training asks of a model.
        """
        return self(ids, segments)[labelled]

    def new_cache(self) -> Any:
        """An empty cache for one call of ``generate``."""
        return KVCache()

    def next_logits(
        self, ids: Tensor, mask: Tensor | None, cache: KVCache | None, last: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, vocab) after each row's last token, which stands at ``last`` (batch,).

        Without ``last``, at the end. What generation asks of a model. ``mask`` (batch, time) is 0
        for padding among these ids.
        """
        logits = self(ids, mask, cache)
        return logits[:, -1] if last is None else logits[torch.arange(len(ids)), last]

    def stepper(self, cache: Any, new: int) -> Callable[[Tensor], Tensor] | None:
        """A faster ``next_logits`` of one new token a row, (batch, 1); None where there is none.

        ``new``: how many it will be asked for. It is used while the model stays as it is.
        """
        return None

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 64,
        *,
        attention_mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Continue (batch, time) token ids; returns (batch, time + new).

        ``temperature=0`` takes the likeliest token; otherwise a token is drawn from
        softmax(logits / temperature) over the ``top_k`` likeliest, of these over the fewest whose
        probability reaches ``top_p``; the same for the same ``seed``.
        A row ends at ``eos_id``, or at any of several, and is filled up with the first. Dropout is
        off during the call. Raises ``ValueError`` on settings that mean nothing, and on rows that
        are padded on the right; ``FloatingPointError`` where the model gives no numbers.
        """
        settings = Sampling(
            max_new_tokens, temperature, top_k, seed, ends_of(eos_id), use_cache, top_p
        )
        new = list(self.tokens(input_ids, attention_mask, settings, in_one_go=True))
        return torch.cat([input_ids, torch.stack(new, dim=1)], dim=1)

    def tokens(
        self, ids: Tensor, mask: Tensor | None, settings: Sampling, in_one_go: bool = False
    ) -> Generator[Tensor, None, None]:
        """The new tokens of every row, (batch,), one step after the other.

        ``in_one_go`` promises that nobody changes the model between two of them.
        """
        if mask is not None and not mask[:, -1].all():
            raise ValueError(
                "generate continues the last token of each row, but attention_mask ends in "
                f"{mask[:, -1].tolist()}: pad on the left, so that each row ends in 1"
            )
        was_training = self.training
        self.eval()
        random = torch.Generator(device=ids.device).manual_seed(settings.seed)
        cache = self.new_cache() if settings.use_cache else None
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        ends = torch.tensor(settings.ends, dtype=torch.long, device=ids.device)
        choice = settings.temperature, settings.top_k, random, settings.top_p
        step = None
        try:
            for number in range(settings.max_new_tokens):
                with torch.inference_mode(), generating():
                    if number == 1 and in_one_go and cache is not None:
                        step = self.stepper(cache, settings.max_new_tokens)
                    logits = step(ids) if step else self.next_logits(ids, mask, cache)
                    if number in (0, settings.max_new_tokens - 1):  # NaN stays, once it is there
                        check_no_nan(logits)
                    token = sample(logits, *choice)
                    if settings.ends:
                        token = torch.where(ended, settings.ends[0], token)
                        ended |= torch.isin(token, ends)
                yield token
                if settings.ends and bool(ended.all()):
                    break
                if cache is not None:
                    ids, mask = token[:, None], None
                else:
                    ids = torch.cat([ids, token[:, None]], dim=1)
                    mask = mask if mask is None else F.pad(mask, (0, 1), value=1)
        finally:
            self.train(was_training)

    def generate_text(
        self,
        instruction: str | Sequence[Message],
        context: str = "",
        max_new_tokens: int = 64,
        tools: Sequence[Message] | None = None,
        **sampling: Any,
    ) -> str:
        """The answer to an instruction, with an optional context, or to a list of messages.

        ``tools`` are definitions of functions that the chat template shows to the model; a call is
        returned as the text that the model writes for it. ``sampling`` goes to ``generate``:
        ``temperature``, ``top_k``, ``top_p``, ``seed``. Spaces at the answer's end are left out.
        Raises ``ValueError`` without a tokenizer; warns when the text becomes longer than the
        model's positions.
        """
        asked = (instruction, context) if isinstance(instruction, str) else instruction
        return self.generate_texts([asked], max_new_tokens, tools, **sampling)[0]

    def generate_texts(
        self,
        prompts: Sequence[tuple[str, str] | Sequence[Message]],
        max_new_tokens: int = 64,
        tools: Sequence[Message] | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Answers to many (instruction, context) pairs or lists of messages, as one batch."""
        rows, ids, mask = self.left_padded(prompts, tools)
        tok = self.tokenizer
        settings = {"attention_mask": mask, "eos_id": tok.eos_ids, **sampling}
        out = self.generate(ids, max_new_tokens, **settings)
        new = [up_to_end(row, tok.eos_ids) for row in out[:, ids.shape[1] :].tolist()]
        warn_beyond(self, max(len(row) + len(end) for row, end in zip(rows, new, strict=True)))
        return [tok.answer_text(*pair).rstrip() for pair in zip(rows, new, strict=True)]

    def stream_text(
        self,
        instruction: str | Sequence[Message],
        context: str = "",
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        tools: Sequence[Message] | None = None,
    ) -> Iterator[str]:
        """``generate_text`` in pieces, each as soon as it is known: together they are its result.

        A piece never ends inside a letter of several bytes, nor in a space that may be the last.
        """
        asked = (instruction, context) if isinstance(instruction, str) else instruction
        [prompt], ids, mask = self.left_padded([asked], tools)
        ends = tuple(self.tokenizer.eos_ids)
        settings = Sampling(max_new_tokens, temperature, top_k, seed, ends, True, top_p)
        return self.pieces(prompt, self.tokens(ids, mask, settings))

    def pieces(self, prompt: list[int], tokens: Iterator[Tensor]) -> Iterator[str]:
        """The text of tokens as it grows."""
        new: list[int] = []
        shown = ""
        for token in tokens:
            new.append(int(token))
            said = up_to_end(new, self.tokenizer.eos_ids)
            text = self.tokenizer.answer_text(prompt, said, complete=False)
            ready = text.rstrip("\ufffd").rstrip()  # half a letter decodes to U+FFFD
            if ready.startswith(shown) and ready != shown:
                yield ready[len(shown) :]
                shown = ready
        warn_beyond(self, len(prompt) + len(new))
        text = self.tokenizer.answer_text(prompt, up_to_end(new, self.tokenizer.eos_ids))
        if rest := text.rstrip()[len(shown) :]:
            yield rest

    def left_padded(
        self,
        prompts: Sequence[tuple[str, str] | Sequence[Message]],
        tools: Sequence[Message] | None = None,
    ) -> tuple[list[list[int]], Tensor, Tensor]:
        """The ids of prompts as rows, and as one batch (rows, longest) with its mask."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer: load it with load_base(), set model.tokenizer, "
                "or call generate() with token ids"
            )
        if not prompts:
            raise ValueError("expected at least one prompt, got none")
        tok = self.tokenizer
        talks: list[Any] = [question(*asked) if is_pair(asked) else asked for asked in prompts]
        given = {"tools": tools} if tools else {}
        rows = [tok.apply_chat_template(t, add_generation_prompt=True, **given) for t in talks]
        return rows, *pad_left(rows, tok.eos_id, next(self.parameters()).device)


def check_no_nan(logits: Tensor) -> None:
    """Raise ``FloatingPointError`` for NaN, of which argmax would make a token like any other."""
    if torch.isnan(logits).any():
        raise FloatingPointError(
            "the model's logits are NaN: a weight is not finite, or half precision overflowed; "
            "load it in bfloat16 or float32"
        )


def up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first that ends a row."""
    return ids[: next((n for n, token in enumerate(ids) if token in ends), len(ids))]


def is_pair(asked: Any) -> bool:
    """Whether a prompt is (instruction, context), not a list of messages."""
    return isinstance(asked, tuple) and all(isinstance(part, str) for part in asked)


def warn_beyond(model: nn.Module, length: int) -> None:
    """Warn of a text that is longer than what the model was made for."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    before = sum(part.rows_before for _, part in attached_modules(model) if part.enabled)
    if longest is not None and before + length > longest:
        rows = f" and {before} rows before it" if before else ""
        warnings.warn(
            f"the conversation has {length} tokens{rows}, but the model knows {longest} positions: "
            "the text beyond them is unreliable; shorten the prompt or ask for fewer tokens",
            stacklevel=3,
        )


def pad_left(rows: list[list[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest) that end together, and a mask that is 0 where ``fill`` stands."""
    longest = max(map(len, rows))
    ids = [[fill] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
