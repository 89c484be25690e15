"""Many requests on one base at once, each with its own adapter: continuous batching.

One thread owns the model. It repeats a step of five parts::

    hear        requests that arrived, requests that are cancelled
    admit       the next ones in turn (fairness.py) get a free row, and the row its adapter
    read ahead  the adapters of those who may have a row soon, in other threads (waiting.py)
    prefill     the admitted prompts, in one pass: at most ``prefill_tokens`` a step
    decode      one token for every row in use (row_batch.py)

A row that ends makes room at once. Waiting for the whole batch, as ``generate`` does, leaves rows
idle (Orca, OSDI 2022, section 3). A prompt that is longer than ``prefill_tokens`` goes through the
model in parts, one a step, so that the others' tokens keep coming (arXiv 2403.02310 section 4 calls
that chunked prefills; ggml-org/llama.cpp #4216 is about streams that stall without them).

An adapter is read off this thread; others go on meanwhile. What fails, fails for its request alone.

Left out: sharing the prefix of prompts (its key would have to hold the adapters' contents and the
tenant: vllm-project/vllm #3264), taking a row away from a request, speculative decoding.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from ..lora.twin import twin
from ..model.transformer import Llama
from .adapter_store import AdapterStore, Choice, Held
from .requests import Answer, Busy, Event, Known, Request, checked_request
from .row_batch import MULTIPLE, RowBatch
from .waiting import Waiting

BETWEEN_PREFILLS = 8  # tokens of each row, before a tenant beside others begins one more


class Engine:
    """Answers requests on a bank's base; ``start`` begins its thread, ``close`` ends it.

    ``slots``: rows at once. ``most_waiting``: above it ``submit`` raises ``Busy``. Raises
    ``ValueError`` for a base that is not a minilora Llama with a tokenizer.

    >>> import minilora
    >>> from minilora.serving import AdapterBank
    >>> with Engine(AdapterBank(minilora.load_base()), slots=4) as engine:
    ...     answer = engine.submit(("Hull status?", "Log: Hull 90%."), tenant="me")
    ...     print(answer.result().text)
    Hello! I am happy to report Hull 90 percent.
    """

    def __init__(
        self,
        bank: AdapterStore,
        slots: int = 64,
        *,
        prefill_tokens: int = 512,
        most_waiting: int = 4096,
    ):
        base: Any = bank.base
        if not isinstance(base, Llama) or base.tokenizer is None:
            raise ValueError("an engine needs a minilora Llama with a tokenizer: load_base()")
        if slots < 1 or prefill_tokens < MULTIPLE or prefill_tokens % MULTIPLE:
            raise ValueError(
                f"expected at least one slot and prefill_tokens a multiple of {MULTIPLE}, "
                f"got slots={slots}, prefill_tokens={prefill_tokens}"
            )
        self.bank, self.most_waiting = bank, most_waiting
        self.model = twin(base).eval()
        self.waiting = Waiting(bank, slots, self.wake_up)
        ended = self.waiting.refund
        self.batch = RowBatch(self.model, bank.max_rank, slots, prefill_tokens, ended)
        self.suspects: deque[Answer] = deque()  # of a prefill that failed: each alone now
        self.arrivals: deque[Answer] = deque()
        self.cancels: deque[Answer] = deque()
        self.wake = threading.Condition()
        self.thread: threading.Thread | None = None
        self.closed = False

    def submit(
        self,
        prompt: Any,
        adapter: Choice = None,
        *,
        tenant: str = "",
        stop: str | Sequence[str] = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        ends: Sequence[int] | None = None,
        logprobs: int | None = None,
        raw: bool = False,
        notify: Callable[[Event], None] | None = None,
        find_answer: Callable[[Request], Known | None] | None = None,
    ) -> Answer:
        """Queue a request; any thread may call. The answer comes as the engine gets to it.

        ``prompt``: a text, (instruction, context), messages, or token ids. ``ends``: the tokens
        that end it; None: the tokenizer's. ``logprobs``: with so many others beside each.
        ``raw``: what comes after a text, with its spaces.
        ``notify``: called in the engine's thread with each event. ``find_answer``: gives an answer
        that is there already, or None. Raises ``Busy``, and ``ValueError`` for what can never be
        answered (an unknown adapter, a prompt beyond the positions, …), before anything is done.
        """
        request = checked_request(
            self.model,
            prompt,
            self.bank.check(adapter),
            tenant=tenant,
            stop=stop,
            ends=ends,
            settings=(max_new_tokens, temperature, top_k, seed),
            top_p=top_p,
            logprobs=logprobs,
            raw=raw,
        )
        answer = Answer(request, self.model.tokenizer, self.cancel, notify)
        if find_answer is not None and answer.replay(find_answer(request)):
            return answer
        with self.wake:
            if self.closed:
                raise Busy("this engine is closed: ask another server, or begin a new engine")
            if len(self.waiting) + len(self.arrivals) >= self.most_waiting:
                raise Busy(f"{self.most_waiting} requests are waiting: ask again later")
            self.arrivals.append(answer)
            self.wake.notify()
        return answer

    def cancel(self, answer: Answer) -> None:
        """End an answer at the next step; any thread may call."""
        with self.wake:
            self.cancels.append(answer)
            self.wake.notify()

    @torch.inference_mode()
    def step(self) -> bool:
        """One token for every row, and what comes before; False when there is nothing to do.

        For the one thread that owns the engine: its own, or that of a test that never starts it.
        """
        self.hear()
        try:
            self.admit()
            self.waiting.read_ahead(slot.answer for slot in self.batch.in_use)
            self.prefill()
            if self.batch.running:
                self.batch.decode()
        except Exception as error:  # out of memory, say; who waits is not concerned
            self.batch.fail_all(error)
        except BaseException as error:  # Ctrl-C: no row is left half way
            self.batch.fail_all(error)
            raise
        return bool(self.batch.in_use or self.suspects or len(self.waiting))

    def hear(self) -> None:
        """Take in what other threads left."""
        cancelled = [self.cancels.popleft() for _ in range(len(self.cancels))]
        while self.arrivals:  # first: what was cancelled by now has arrived
            self.waiting.push(self.arrivals.popleft())
        for answer in cancelled:
            self.drop(answer)

    def drop(self, answer: Answer) -> None:
        """End an answer that somebody cancelled, wherever it is."""
        rows = [row for row, slot in enumerate(self.batch.in_use) if slot.answer is answer]
        if rows:
            self.batch.retire(rows[0], "cancelled")
            return
        if answer in self.suspects:
            self.suspects.remove(answer)
        elif not self.waiting.remove(answer):
            return  # it has ended
        answer.finish("cancelled")

    def admit(self) -> None:
        """Give free rows to the next answers, as many as fit into one prefill."""
        if self.suspects and not self.batch.prefilling:
            answer = self.suspects.popleft()
            future = self.bank.fetch(answer.request.adapter, answer.request.tenant)
            self.give_row(answer, future)
            return
        while self.batch.has_room(1):
            in_rows = [slot.answer for slot in self.batch.in_use]
            several = not self.batch.running or self.batch.decoded >= BETWEEN_PREFILLS
            entry = self.waiting.next(in_rows, several)
            if entry is None:
                return
            answer, future = entry
            if not self.batch.has_room(len(answer.request.prompt)):
                self.waiting.put_back(entry)
                return
            self.give_row(answer, future)

    def give_row(self, answer: Answer, future: Future[Held]) -> None:
        """Copy an answer's adapters into the next row; what is wrong with them is its error."""
        try:
            held = future.result()
        except Exception as error:
            answer.fail(error)
            return
        try:
            self.batch.admit(answer, held)
        except Exception as error:
            answer.fail(error)
        finally:
            self.bank.release(held)

    def prefill(self) -> None:
        """The prompts' pass; of one that fails, each prompt is tried alone."""
        if not self.batch.prefilling:
            return
        try:
            self.batch.prefill()
        except Exception as error:
            answers = self.batch.step_back()
            if not answers:  # the prompts are through: it was another's token
                raise
            if len(answers) > 1:
                self.suspects.extend(answers)
            else:
                answers[0].fail(error)

    def start(self) -> Engine:
        """Begin the thread that owns the model."""
        if self.closed or self.thread is not None:
            raise ValueError("this engine was started before: make a new one")
        self.thread = threading.Thread(target=self.work, name="engine", daemon=True)
        self.thread.start()
        return self

    def work(self) -> None:
        """Step while there is something to do; sleep until there is."""
        try:
            while not self.closed:
                busy = self.step()
                with self.wake:
                    calm = not (self.arrivals or self.cancels or self.closed)
                    if calm and (not busy or self.reads_only()):
                        self.wake.wait(None if not busy else 0.01)
        finally:  # whatever happened: nobody waits for a thread that is gone
            with self.wake:
                self.closed = True
            self.end_all()

    def reads_only(self) -> bool:
        """Whether nothing can be done before an adapter has been read."""
        return self.waiting.only_reads() and not self.batch.in_use and not self.suspects

    def wake_up(self, _: Any = None) -> None:
        """Wake the engine's thread."""
        with self.wake:
            self.wake.notify()

    def close(self) -> None:
        """End the thread; what is unfinished fails. Nothing happens the second time."""
        with self.wake:
            self.closed = True
            self.wake.notify()
        if self.thread is not None:
            self.thread.join()
        else:
            self.end_all()

    def end_all(self) -> None:
        """Tell everybody that the engine has closed."""
        error = Busy("the engine was closed")
        for answer in [*self.arrivals, *self.suspects]:
            answer.fail(error)
        self.batch.fail_all(error)
        self.waiting.fail_all(error)

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.close()
