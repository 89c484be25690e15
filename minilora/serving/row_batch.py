"""The rows of an engine: prompts go in, a token comes out for each row, ended rows make room.

    rows 0 … n-1      decode: each gets its next token in every step
    rows n …          prefill: the prompts that are going in, together, or a long one in parts

Both kinds lie side by side in the slot cache (model/cache.py) and in the adapters' buffers
(layer.py), so a pass over either reads slices, and nothing is gathered.

**What a row gets does not depend on its neighbours.** Its tokens are drawn with a generator of its
own. Its numbers are those that it has alone, too, to the bit, where the machine's kernels compute a
row of a product the same way in any company (exactness.py asks them). For that the batch avoids the
sizes at which they do not: prompts and what attention reads are padded to a multiple of 16, long
prompts are cut at the same places with and without company, and a pass has at least ``least_rows``
rows (with AVX2 a product's rows agree from 4 rows on, with AVX-512 from 3 to 16, by its size).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.linears import device_of, dtype_of, is_linear, linear_shape
from ..model.cache import KVCache
from ..model.sampling import sample
from .adapter_store import Held
from .layer import AdapterRows
from .requests import Answer, token_logprob

MULTIPLE = 16  # of prompts' lengths, and of the positions that attention reads
MANY = 64  # rows, with which fewer are compared


class Slot:
    """A row in use: its answer, the random numbers it draws from, how much of the prompt is in."""

    def __init__(self, answer: Answer):
        self.answer, self.done = answer, 0
        sampling = answer.request.sampling
        self.random = torch.Generator().manual_seed(sampling.seed)
        self.text = answer.text() if answer.request.stops else None
        self.ends = frozenset(sampling.ends)


class RowBatch:
    """The rows of one model. ``ended`` is called with each answer whose row became free."""

    def __init__(
        self,
        model: Any,
        max_rank: int,
        slots: int,
        prefill_tokens: int,
        ended: Callable[[Answer], None],
    ):
        self.model, self.slots, self.prefill_tokens = model, slots, prefill_tokens
        self.device, self.ended = next(model.parameters()).device, ended
        self.least = least_rows(model)
        self.size = max(slots, self.least)
        self.adapters = AdapterRows(model, max_rank, self.size)
        self.cache = KVCache(MULTIPLE, self.size)
        self.running: list[Slot] = []  # row i is running[i]
        self.prefilling: list[Slot] = []  # in the rows after those
        self.decoded = 0  # tokens of each row since the last prefill with a tenant's further row

    @property
    def in_use(self) -> list[Slot]:
        """Rows that decode, then rows whose prompts are not through yet."""
        return self.running + self.prefilling

    def has_room(self, prompt: int) -> bool:
        """Whether a prompt of so many tokens can join the next prefill."""
        if not self.prefilling:
            return len(self.running) < self.slots
        lengths = [len(slot.answer.request.prompt) for slot in self.prefilling]
        padded = padded_length(max(*lengths, prompt)) * (1 + len(lengths))
        begun = self.prefilling[0].done > 0
        return not begun and padded <= self.prefill_tokens and len(self.in_use) < self.slots

    def admit(self, answer: Answer, held: Held) -> None:
        """Give an answer the next row, and the row a copy of its adapters."""
        self.adapters.admit(len(self.in_use), held.parts)
        answer.key = held.key
        self.prefilling.append(Slot(answer))

    def prefill(self) -> None:
        """A pass over the new prompts, or over the next part of a long one."""
        first, group = len(self.running), self.prefilling
        held = Counter(slot.answer.request.tenant for slot in self.in_use)
        if any(held[slot.answer.request.tenant] > 1 for slot in group):
            self.decoded = 0  # a tenant's first row holds nobody else back
        prompts = [slot.answer.request.prompt for slot in group]
        parts = [
            prompt[slot.done : slot.done + self.prefill_tokens]
            for slot, prompt in zip(group, prompts, strict=True)
        ]
        time = padded_length(max(*map(len, parts), -(-self.least // len(group))))
        ids = torch.tensor([[*part, *[0] * (time - len(part))] for part in parts])
        lengths = torch.tensor([len(part) for part in parts])
        kept = torch.arange(time) < lengths[:, None]  # (rows, time)
        self.look_at(first, len(group))
        states = self.model.model(ids.to(self.device), kept.to(self.device), self.cache)
        for slot, part in zip(group, parts, strict=True):
            slot.done += len(part)
        if group[0].done == len(prompts[0]):
            # the head sees no fewer rows than anything else
            last = (lengths - 1)[:, None].expand(-1, -(-self.least // len(group)))
            ends = states[torch.arange(len(group))[:, None], last]  # (rows, copies, hidden)
            logits = self.model.lm_head(ends)[:, 0]
            self.running, self.prefilling = self.running + group, []
            self.take(first, logits)

    def decode(self) -> None:
        """The next token of every row."""
        n, count = len(self.running), max(len(self.running), self.least)
        self.decoded += 1
        ids = torch.tensor([slot.answer.ids[-1] for slot in self.running] + [0] * (count - n))
        kept = None
        if count > n:  # rows without a text keep nothing of what they compute
            kept = (torch.arange(count) < n)[:, None].to(self.device)
        self.look_at(0, count)
        logits = self.model.next_logits(ids[:, None].to(self.device), kept, self.cache)
        self.take(0, logits[:n])

    def look_at(self, first: int, count: int) -> None:
        """The next pass is about these rows."""
        self.cache.first = first
        self.adapters.look_at(first, first + count)

    def take(self, first: int, logits: Tensor) -> None:
        """Choose a token for each row from ``first`` on; rows that end make room."""
        likeliest = logits.argmax(dim=-1).tolist()
        sound = logits.sum(dim=-1, dtype=torch.float32).isfinite().tolist()
        for i in reversed(range(len(logits))):  # from the end: a gap is filled from behind
            row, slot = first + i, self.running[first + i]
            if not sound[i]:
                self.fail(row, ValueError("the logits are not finite"))
                continue
            sampling, token = slot.answer.request.sampling, likeliest[i]
            try:
                if sampling.temperature > 0:
                    choice = sampling.temperature, sampling.top_k, slot.random, sampling.top_p
                    token = int(sample(logits[i : i + 1].cpu(), *choice))
                reason = self.give(slot, token, logits[i])
            except Exception as error:  # this row's alone
                self.fail(row, error)
                continue
            if reason is not None:
                self.retire(row, reason)

    def give(self, slot: Slot, token: int, logits: Tensor) -> str | None:
        """Pass a token on; the reason if it ends the answer."""
        answer, request = slot.answer, slot.answer.request
        if token in slot.ends:
            return "stop"
        answer.ids.append(token)
        if request.logprobs is not None:
            answer.logprobs.append(token_logprob(logits, token, request.logprobs))
        answer.put(token)
        if slot.text is not None:
            slot.text.push(token)
            if slot.text.stopped:
                return "stop"
        positions = self.model.config.max_position_embeddings
        full = len(request.prompt) + len(answer.ids) >= positions
        return "length" if full or len(answer.ids) == request.sampling.max_new_tokens else None

    def retire(self, row: int, reason: str) -> None:
        """End a row's answer and free the row."""
        answer = self.vacate(row)
        answer.finish(reason)

    def fail(self, row: int, error: BaseException) -> None:
        """A row's answer ends with an error."""
        answer = self.vacate(row)
        answer.fail(error)

    def vacate(self, row: int) -> Answer:
        """Free a row: the last row that decodes fills the gap, a prompt in parts moves up."""
        answer, end = self.in_use[row].answer, len(self.running)
        if row < end:
            self.running[row] = self.running[-1]
            self.running.pop()
            self.move(end - 1, row)
            row = end - 1
            if self.prefilling:
                self.move(end, row)
        else:
            del self.prefilling[row - end]
            self.cache.clear(row)
        self.ended(answer)
        return answer

    def move(self, source: int, target: int) -> None:
        """Copy a row onto another, and empty it."""
        if source != target:
            self.cache.move(source, target)
            self.adapters.move(source, target)
        else:
            self.cache.clear(source)

    def step_back(self) -> list[Answer]:
        """Free the rows of a prefill that failed; returns their answers, which nobody has told."""
        answers = [slot.answer for slot in self.prefilling]
        for row in range(len(self.running), len(self.in_use)):
            self.cache.clear(row)
        self.prefilling = []
        return answers

    def fail_all(self, error: BaseException) -> None:
        """Every row's answer ends with an error; the rows begin anew."""
        slots, self.running, self.prefilling = self.in_use, [], []
        for slot in slots:
            self.ended(slot.answer)
            slot.answer.fail(error)
        self.cache = KVCache(MULTIPLE, self.size)


def padded_length(length: int) -> int:
    """The next multiple of 16."""
    return -(-length // MULTIPLE) * MULTIPLE


@torch.inference_mode()
def least_rows(model: nn.Module) -> int:
    """The fewest rows from which on a row of every Linear's product is that of ``MANY`` rows.

    1 where no number of rows is enough: the engine's rows then agree within rounding only.
    """
    linears = {(*linear_shape(m), type(m)): m for m in model.modules() if is_linear(m)}
    least, rows = 1, [*range(1, 25), 32, 48]
    random = torch.Generator().manual_seed(0)  # nobody else's numbers change
    for (size, *_), linear in linears.items():
        x = torch.randn(MANY, size, generator=random).to(device_of(linear), dtype_of(linear))
        y = linear(x)
        differ = [n for n in rows if not torch.equal(linear(x[:n]), y[:n])]
        if differ == rows:
            return 1
        least = max([least, *(n + 1 for n in differ)])
    return least
