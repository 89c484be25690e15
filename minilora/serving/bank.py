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

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import nn

from ..lora.twin import twin
from ..model.transformer import Llama
from ..text import listed
from .adapter_store import AdapterStore, Choice
from .engine import Engine
from .layer import AdapterRows
from .requests import Answer, Finished, RequestFailed, prompt_ids


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
        self.owner: int | None = None  # the thread whose turn it is

    @contextmanager
    def my_turn(self) -> Iterator[None]:
        """Wait for the model. Raises ``ValueError`` where this thread would wait for itself."""
        if self.owner == threading.get_ident():
            raise ValueError("expected no call of the bank inside `with bank.batch(…)`: leave it")
        with self.turn:
            self.owner = threading.get_ident()
            try:
                yield
            finally:
                self.owner = None

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
        with self.my_turn():
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
        ``sampling``: ``temperature``, ``top_k``, ``top_p``, ``seed`` and ``stop``, for each row as
        if it were alone. Raises one ``ValueError`` that names every bad row, before anything is
        computed, or, when an adapter is gone from disk by then, after the others are done.
        """
        answers = self.submit_all(rows, max_new_tokens, sampling)
        try:
            with self.my_turn():
                while self.engine.step():
                    pass
        except BaseException:  # Ctrl-C, say: nothing of this call is left for the next
            for answer in answers:
                answer.cancel()
            raise
        texts, wrong = [], []
        for number, answer in enumerate(answers):
            try:
                texts.append(answer.result().text)
            except RequestFailed as error:
                wrong.append(f"row {number}: {error}")
        if wrong:
            raise ValueError(listed(wrong, 8))
        return texts

    def stream(
        self, row: tuple[Any, ...], max_new_tokens: int = 64, **sampling: Any
    ) -> Iterator[str]:
        """The answer to one row in pieces, together ``generate``'s; raises as that does.

        Leaving the loop ends the answer.
        """
        [answer] = self.submit_all([row], max_new_tokens, sampling)
        return self.pieces(answer)

    def pieces(self, answer: Answer) -> Iterator[str]:
        """An answer's text as it grows; each step computes a token for every row in progress."""
        text = answer.text()
        try:
            while True:
                while answer.events.empty():
                    with self.my_turn():
                        self.engine.step()
                event = answer.next_event()
                if isinstance(event, Finished):
                    break
                if piece := text.push(event):
                    yield piece
            if rest := event.text[len(text.shown) :]:
                yield rest
        except RequestFailed as error:
            raise ValueError(str(error)) from error
        finally:
            answer.cancel()

    def submit_all(
        self, rows: Sequence[tuple[Any, ...]], max_new_tokens: int, sampling: dict[str, Any]
    ) -> list[Answer]:
        """Check every row, then queue them all."""
        answers: list[Answer] = []
        try:
            for choice, prompt in self.checked(rows):
                settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, **sampling}
                answers.append(self.engine.submit(prompt, choice, **settings))
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return answers

    @cached_property
    def engine(self) -> Engine:
        """What computes the answers, a step at a time, in the thread that asks."""
        return Engine(self, most_waiting=sys.maxsize)

    def checked(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Choice, tuple[int, ...]]]:
        """Each row's adapter, and its prompt as token ids."""
        if not isinstance(self.base, Llama) or self.base.tokenizer is None:
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

    def checked_row(self, row: tuple[Any, ...]) -> tuple[Choice, tuple[int, ...]]:
        """One row. Raises ``ValueError``."""
        if not isinstance(row, tuple | list) or len(row) not in (2, 3):
            raise ValueError(f"expected (adapter, instruction, context), got {row!r:.80}")
        choice, asked, *context = row
        self.check(choice)
        if isinstance(asked, str):
            asked = (asked, *(context or ("",)))
            if not isinstance(asked[1], str):
                raise ValueError(f"expected text for the context, got {asked[1]!r:.80}")
        elif context and context[0] != "":
            raise ValueError(f"a context goes with an instruction in text, got {asked!r:.80}")
        base: Any = self.base
        return choice, prompt_ids(base.tokenizer, asked, base.config.max_position_embeddings)
