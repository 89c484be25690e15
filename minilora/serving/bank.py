"""Many adapters on one base, each row of a batch with its own.

    bank = AdapterBank(minilora.load_base())
    bank.load("naval", folder)                                    read strictly, once
    bank.generate([("naval", "Status?", log), (None, "Status?", log)])

All rows are checked before any is computed: an unknown name, an empty prompt, one too long, ranks
that do not fit are one ``ValueError`` that names every bad row.

The bank works on a twin of the model (lora/twin.py): the model itself stays an ordinary model, but
its weights are the bank's too, so do not train or merge into it. A foreign model, as one of
transformers, takes rows like ours: ``with bank.batch([…]) as model: model.generate(…)``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..lora.twin import twin
from ..model.generation import CausalLM
from ..model.own_forms import question
from ..text import listed
from .adapter_store import AdapterStore, Choice
from .layer import AdapterRows

AT_ONCE = 64  # rows of one batch


class AdapterBank(AdapterStore):
    """One frozen base and the adapters that its rows may have, in ``memory`` bytes (None: any).

    ``max_rank``: the rank of a row's buffers; an adapter, or several in one row, must fit it.
    The base may be in floats or in four bits, ours or a transformers model. Raises ``ValueError``
    for a model that has adapters.

    >>> import tempfile, minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> bank = AdapterBank(minilora.load_base())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     content = bank.load("new", minilora.save_adapter(model, folder))
    >>> bank.names(), len(content)
    (['new'], 64)
    >>> log = "Log: Hull 90%."
    >>> bank.generate([("new", "Hull status?", log), (None, "Hull status?", log)])[1]
    'Hello! I am happy to report Hull 90 percent.'
    """

    def __init__(self, base: nn.Module, max_rank: int = 16, memory: int | None = None):
        super().__init__(base, max_rank, memory)
        self.model: Any = twin(self.base).eval()  # whose Linears get rows
        self.rows = AdapterRows(self.model, max_rank, size=1)
        self.turn = threading.Lock()  # of the model and its rows: one batch at a time

    @contextmanager
    def batch(self, choices: Sequence[Choice]) -> Iterator[Any]:
        """The model for one batch: inside, its row i computes with the i-th choice.

        A call may have a multiple of so many rows, k for each choice, side by side (beams). Other
        threads wait for their turn. Raises ``ValueError`` as ``hold``.

        >>> import torch
        >>> from minilora.model.transformer import Llama, LlamaConfig
        >>> bank = AdapterBank(Llama(LlamaConfig(vocab_size=9, hidden_size=8)))
        >>> with bank.batch([None, None]) as model, torch.no_grad():
        ...     model(torch.tensor([[1, 2], [3, 4]])).shape
        torch.Size([2, 2, 9])
        """
        if not choices:
            raise ValueError("expected at least one row, got none")
        with self.turn:
            if self.rows.size < len(choices):
                self.rows.resize(len(choices))
            for row, choice in enumerate(choices):
                held = self.hold(choice)
                try:
                    self.rows.admit(row, held.parts)
                finally:
                    self.release(held)
            self.rows.look_at(0, len(choices))
            yield self.model

    def generate(
        self, rows: Sequence[tuple[Any, ...]], max_new_tokens: int = 64, **sampling: Any
    ) -> list[str]:
        """The answer to each row: (adapter, instruction), (adapter, instruction, context), or
        (adapter, messages).

        An adapter is a name, None for the base, or several with weights, as
        ``[("legal", 1.0), ("brief", 0.5)]``: their sum, exactly (``combine(how="cat")``).
        ``sampling`` is that of ``generate_texts``. Raises one ``ValueError`` that names every bad
        row, before anything is computed.
        """
        asked = self.checked(rows)
        texts: list[str] = []
        for start in range(0, len(asked), AT_ONCE):
            part = asked[start : start + AT_ONCE]
            with self.batch([choice for choice, _ in part]) as model:
                prompts = [prompt for _, prompt in part]
                texts += model.generate_texts(prompts, max_new_tokens, **sampling)
        return texts

    def stream(
        self, row: tuple[Any, ...], max_new_tokens: int = 64, **sampling: Any
    ) -> Iterator[str]:
        """The answer to one row in pieces, as ``Llama.stream_text``; raises as ``generate``."""
        [(choice, prompt)] = self.checked([row])
        return self.pieces(choice, prompt, max_new_tokens, sampling)

    def pieces(
        self, choice: Choice, prompt: Any, max_new_tokens: int, sampling: dict[str, Any]
    ) -> Iterator[str]:
        """The pieces of an answer; the bank is busy until the last one."""
        asked = prompt if isinstance(prompt, tuple) else (prompt,)
        with self.batch([choice]) as model:
            yield from model.stream_text(*asked, max_new_tokens=max_new_tokens, **sampling)

    def checked(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Choice, Any]]:
        """(adapter, prompt) of each row, in the form of ``generate_texts``."""
        if not isinstance(self.model, CausalLM) or self.model.tokenizer is None:
            raise ValueError(
                "generate needs a minilora Llama with a tokenizer, as load_base() makes it; for "
                "another model: with bank.batch(adapters) as model: model.generate(…)"
            )
        if not rows:
            raise ValueError("expected at least one row, got none")
        asked, wrong = [], []
        for number, row in enumerate(rows):
            try:
                asked.append(self.checked_row(row))
            except ValueError as error:
                wrong.append(f"row {number}: {error}")
        if wrong:
            raise ValueError(listed(wrong, 8))
        return asked

    def checked_row(self, row: tuple[Any, ...]) -> tuple[Choice, Any]:
        """One row's adapter and prompt. Raises ``ValueError``."""
        if not isinstance(row, tuple | list) or len(row) not in (2, 3):
            raise ValueError(f"expected (adapter, instruction, context), got {row!r:.80}")
        choice, asked, *context = row
        self.check(choice)
        if isinstance(asked, str):
            if not asked.strip():
                raise ValueError("the prompt is empty")
            prompt: Any = (asked, *(context or ("",)))
            if not isinstance(prompt[1], str):
                raise ValueError(f"expected text for the context, got {prompt[1]!r:.80}")
        else:
            prompt = asked
        talk = question(*prompt) if isinstance(prompt, tuple) else prompt
        ids = self.model.tokenizer.apply_chat_template(talk, add_generation_prompt=True)
        if len(ids) > (positions := self.model.config.max_position_embeddings):
            raise ValueError(f"a prompt of {len(ids)} tokens, the base has {positions} positions")
        return choice, prompt
