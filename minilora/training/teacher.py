"""The teacher of a self-replay: the model before the fine-tune; what it writes, and its logits.

    windows   texts drawn at temperature 1, each from a random first token; every token is a label
    answers   to given prompts, drawn at temperature 1, up to their end; the prompts have no labels

With an adapter the former model is at hand, by switching the adapter off. Where anything else
trains (everything, or biases, or an output head beside an adapter) a copy is kept of the model as
it is when the run begins. The same holds where training goes on with an adapter that must not
unlearn what it knows. A copy costs the memory of what trains: the frozen weights are the same.

The teacher says the same of a row at every step, so its last hidden states are computed once: 128
numbers a token here, where the logits are 1,536, which its head makes of them again.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import adapter_layers
from ..lora.attached import adapters_of, attached_modules
from ..lora.injection import disable_adapter
from ..lora.paths import unwrapped
from ..model.generation import CausalLM, up_to_end
from ..model.transformer import Llama
from .batches import IGNORE, Batch, Encoded, pad
from .objective import logits_at

AT_ONCE = 64  # rows that are sampled, or studied, in one batch


class Teacher:
    """The model as it was before the fine-tune: its adapter switched off, or a frozen copy.

    A copy is made where switching adapters off would not bring the former model back: where a
    parameter trains that belongs to no adapter, and where ``with_adapter`` says that the adapter's
    beginning is a part of it.
    """

    def __init__(self, model: nn.Module, with_adapter: bool = False):
        itself = unwrapped(model)
        if not isinstance(itself, CausalLM) or itself.tokenizer is None:
            raise ValueError(
                "SelfReplay samples text, which needs a minilora Llama with a tokenizer, as "
                f"load_base() makes it, got {type(itself).__name__}; Examples and Prose need none"
            )
        self.with_adapter = with_adapter
        self.is_copy = with_adapter or not only_adapters_train(itself)
        self.model = frozen_copy(itself) if self.is_copy else itself

    @contextlib.contextmanager
    def at_work(self) -> Iterator[CausalLM]:
        """The former model: no dropout, no gradient; afterwards all is as it was."""
        was_training = self.model.training
        switch = bool(adapters_of(self.model)) and not self.with_adapter
        off = disable_adapter(self.model) if switch else contextlib.nullcontext()
        with off, torch.no_grad():
            try:
                self.model.eval()
                yield self.model
            finally:
                self.model.train(was_training)

    def states(self, rows: Sequence[Encoded]) -> list[Tensor]:
        """The last hidden states (label tokens, hidden) of each row, from which logits are made.

        Only of a Llama, whose head stands apart; of another model none, and ``logits`` computes it.
        """
        states: list[Tensor] = []
        with self.at_work() as model:
            if not isinstance(model, Llama):
                return states
            for start in range(0, len(rows), AT_ONCE):
                batch = pad(rows[start : start + AT_ONCE]).to(next(model.parameters()).device)
                labelled = batch.labels[:, 1:] != IGNORE
                at_labels = model.states_at(batch.ids[:, :-1], labelled)
                states += at_labels.split(labelled.sum(1).tolist())
        return states

    def logits(self, batch: Batch, states: Sequence[Tensor]) -> Tensor:
        """The former model's logits (label tokens, vocab) of a batch of padded rows."""
        with self.at_work() as model:
            if isinstance(model, Llama):
                return model.lm_head(torch.cat(list(states)))
            return logits_at(model, batch.ids[:, :-1], batch.labels[:, 1:] != IGNORE, None)


def frozen_copy(model: CausalLM) -> CausalLM:
    """A copy of what trains, around the same frozen weights; nothing in it trains."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    shared: list[Any] = [*frozen, *model.buffers(), model.tokenizer]
    return copy.deepcopy(model, {id(each): each for each in shared}).requires_grad_(False)


def only_adapters_train(model: nn.Module) -> bool:
    """Whether every parameter that trains belongs to an adapter, and none to what it adapts."""
    own: set[int] = set()
    for _, layer in adapter_layers(model):
        own |= {id(p) for p in layer.parameters()} - {id(p) for p in layer.base.parameters()}
    for _, part in attached_modules(model):
        own |= {id(p) for p in part.parameters()}
    return all(id(p) in own for p in model.parameters() if p.requires_grad)


def sample_windows(model: CausalLM, count: int, tokens: int, seed: int) -> list[Encoded]:
    """Texts that the model draws from itself, each from a random first token; all are labels."""
    random_state, tokenizer = torch.Generator().manual_seed(seed), model.tokenizer
    vocab, device = len(model.tokenizer), next(model.parameters()).device
    opening = tokenizer.raw.encode("a").ids[:1] if tokenizer.adds_bos else []
    rows: list[Encoded] = []
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        first = torch.randint(vocab, (size,), generator=random_state).tolist()
        ids = torch.tensor([[*opening, token] for token in first], device=device)
        new = max(1, tokens - ids.shape[1])
        drawn = model.generate(ids, new, temperature=1.0, seed=seed + start)  # (size, tokens)
        rows += [Encoded(row, list(row)) for row in drawn.tolist()]
    return rows


def sample_answers(
    model: CausalLM, prompts: Sequence[Any], tokens: int, seed: int
) -> list[Encoded]:
    """The model's answers, drawn at temperature 1, up to their end; the prompts have no labels."""
    ends = model.tokenizer.eos_ids
    rows: list[Encoded] = []
    for start in range(0, len(prompts), AT_ONCE):
        asked, ids, mask = model.left_padded(prompts[start : start + AT_ONCE])
        settings: Any = {"attention_mask": mask, "eos_id": ends, "temperature": 1.0}
        out = model.generate(ids, tokens, seed=seed + start, **settings)
        for prompt, new in zip(asked, out[:, ids.shape[1] :].tolist(), strict=True):
            answer = up_to_end(new, ends)
            answer += new[len(answer) : len(answer) + 1]  # the token that ends it
            rows.append(Encoded(prompt + answer, [IGNORE] * len(prompt) + answer))
    return rows
