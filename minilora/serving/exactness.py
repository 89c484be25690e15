"""Is a row of this engine, on this machine, equal to the bit to the same row alone?

In floating point a sum depends on the order of its terms, and a kernel chooses the order by the
shape of its input: the same row can differ in its last bits between a batch of 3 and a batch of 64
(vllm-project/vllm #17524 asks why greedy answers do). The engine keeps to shapes at which the usual
CPU kernels do not differ (row_batch.py). Whether that suffices can be tried, not known: the probe
runs random prompts, with random adapters, together and each alone, and compares all logits.

Where it says no, a row's logits still agree within the rounding of the dtype, and its tokens unless
two are that close.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..lora.twin import twin
from ..model.sampling import Sampling
from .adapter_store import Held
from .layer import Factors, Weighted
from .requests import Answer, Request
from .row_batch import RowBatch


class Recorder(RowBatch):
    """A batch that keeps the logits of each answer, step by step."""

    def __init__(self, model: Any, max_rank: int, slots: int):
        super().__init__(model, max_rank, slots, 256, lambda answer: None)
        self.logits: dict[int, list[Tensor]] = {}  # by the answer's identity

    def take(self, first: int, logits: Tensor) -> None:
        """As the batch, but first keep what each row got."""
        for slot, row in zip(self.running[first:], logits, strict=False):
            self.logits.setdefault(id(slot.answer), []).append(row.clone())
        super().take(first, logits)


@torch.inference_mode()
def rows_are_exact(base: nn.Module, max_rank: int = 16, rows: int = 9, seed: int = 0) -> bool:
    """Whether ``rows`` random prompts get the same logits together as alone, to the bit.

    >>> from minilora.model.transformer import Llama, LlamaConfig
    >>> base = Llama(LlamaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2))
    >>> rows_are_exact(base) in (True, False)  # it depends on the machine
    True
    """
    random = torch.Generator().manual_seed(seed)
    model = twin(base).eval()
    requests = [random_request(model, random, row) for row in range(rows)]
    adapters = [random_adapter(base, max_rank, random) for _ in range(rows)]
    together = logits_of(model, max_rank, requests, adapters)
    for row in range(rows):
        model = twin(base).eval()
        [alone] = logits_of(model, max_rank, requests[row : row + 1], adapters[row : row + 1])
        if not all(map(torch.equal, together[row], alone)):
            return False
    return True


def random_request(model: Any, random: torch.Generator, number: int) -> Request:
    """A prompt of 1 to 40 tokens, and up to 8 new ones."""
    size = model.config.vocab_size
    longest = min(40, model.config.max_position_embeddings - 9)
    length = int(torch.randint(1, longest + 1, (1,), generator=random))
    prompt = torch.randint(0, size, (length,), generator=random).tolist()
    return Request(tuple(prompt), (), "", Sampling(1 + number % 8, 0.0, None, 0, (), True), ())


def random_adapter(base: nn.Module, max_rank: int, random: torch.Generator) -> Weighted:
    """Factors for half of the Linears, of a random rank."""
    factors = {}
    linears = [(path, m) for path, m in base.named_modules() if isinstance(m, nn.Linear)]
    for path, linear in linears[:-1]:  # without the head
        if torch.rand(1, generator=random) < 0.5:
            r = int(torch.randint(1, max_rank + 1, (1,), generator=random))
            A = torch.randn(r, linear.in_features, generator=random) / linear.in_features**0.5
            B = torch.randn(r, linear.out_features, generator=random) / 4
            factors[path] = Factors(A, B)
    return factors, 1.0


def logits_of(
    model: Any, max_rank: int, requests: list[Request], adapters: list[Weighted]
) -> list[list[Tensor]]:
    """Every row's logits, step by step."""
    batch = Recorder(model, max_rank, len(requests))
    answers = [Answer(request, model.tokenizer, lambda answer: None) for request in requests]
    for answer, adapter in zip(answers, adapters, strict=True):
        if not batch.has_room(len(answer.request.prompt)):
            batch.prefill()
        batch.admit(answer, Held((adapter,), ()))
    batch.prefill()
    while batch.running:
        batch.decode()
    return [batch.logits[id(answer)] for answer in answers]
