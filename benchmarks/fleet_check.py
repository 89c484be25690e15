"""The simulation's measured times, and one real server beside it.

Its times are fitted to the steps of one trace, and it is compared on others.

The server is the engine with its bank on the shipped base. Its clock is the processor time of its
thread: a step of the engine moves the clock by what it took, nothing else does, and where nothing
can go on the clock jumps to the next event. A reading from disk ends when its measured time has
passed on that clock, with as many readers as the store has.

On a machine that others use, processor time too varies by a quarter from run to run. So the engine
also runs on a second clock: its own steps, its own decisions, and each step moves the clock by the
fitted time of its rows and prompts. What is left apart then is the simulation's doing.
"""

from __future__ import annotations

import heapq
import statistics
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minilora
from minilora.serving import AdapterBank, Engine

from .fleet_model import Floats, Line, Times, Trace

PROMPT = 32  # tokens
ROUNDS = 9  # of which the median counts


def filled_bank(folders: list[Path], adapters: int | None = None) -> AdapterBank:
    """A bank with every folder under its number, with room for so many adapters in memory."""
    bank = AdapterBank(minilora.load_base(), max_rank=8)
    for number, folder in enumerate(folders):
        bank.load(str(number), folder)
    if adapters is not None:
        for known in list(bank.known.values()):
            bank.cache.drop(known.content)
        bank.cache.memory = adapters * max(known.nbytes for known in bank.known.values())
    return bank


def prompt_of(number: int) -> list[int]:
    """A prompt of its own for each request."""
    return [3 + (7 * number + 11 * i) % 1500 for i in range(PROMPT)]


def read_seconds(bank: AdapterBank) -> float:
    """Processor seconds of reading an adapter from disk, the median."""
    known, reads = bank.known["0"], []
    for _ in range(ROUNDS):
        begun = time.thread_time()
        bank.reader.read_again(known.folder, known.content)
        reads.append(time.thread_time() - begun)
    return statistics.median(reads)


class Step(NamedTuple):
    """A step of the engine: rows that got a token by decoding, prompts that went in, seconds."""

    rows: int
    prompts: int
    seconds: float


def explained(steps: list[Step], times: Times) -> float:
    """The share of the steps' variance that the fit explains, R²."""
    fitted = [
        (times.prompt + (s.prompts - 1) * times.more) * (s.prompts > 0)
        + (times.step + times.row * s.rows) * (s.rows > 0)
        for s in steps
    ]
    seconds = np.array([s.seconds for s in steps])
    return float(1 - np.var(seconds - fitted) / np.var(seconds))


def fitted_times(steps: list[Step], read: float, nbytes: int) -> Times:
    """Least squares over an engine's steps: seconds = step + row · rows, and those of prompts.

    No time is negative, whatever the noise of a few short runs makes of it.
    """
    table = [(s.rows > 0, s.rows, s.prompts > 0, max(0, s.prompts - 1)) for s in steps]
    a, b = np.array(table, dtype=float), np.array([s.seconds for s in steps])
    fitted = np.linalg.lstsq(a, b, rcond=None)[0]
    step, row, prompt, more = np.maximum(fitted, (1e-6, 0.0, 1e-6, 0.0)).tolist()
    return Times(step, row, prompt, more, read, nbytes)


class RealServer:
    """An engine that answers a trace on the clock of its processor time, or of fitted ``times``."""

    def __init__(
        self,
        bank: AdapterBank,
        slots: int,
        read: float,
        times: Times | None = None,
        readers: int = 2,
    ):
        self.bank, self.read, self.now, self.times = bank, read, 0.0, times
        self.engine = Engine(bank, slots=slots)
        self.lines = [Line() for _ in range(readers)]
        self.pending: list[tuple[float, int, Future[Any], Any]] = []
        self.due: dict[str, float] = {}
        self.asked = self.hits = 0
        self.begun: float | None = None  # of the step that runs
        self.steps: list[Step] = []
        bank.fetch = self.fetch  # type: ignore[method-assign]

    def fetch(self, chosen: Any, tenant: str = "") -> Future[Any]:
        """The store's ``fetch``, on this clock."""
        future: Future[Any] = Future()
        content = chosen[0][1].content
        self.asked += 1
        if content in self.bank.cache:
            self.hits += 1
            self.bank.try_to_hold(chosen, "", future)
            return future
        if self.due.get(content, -1.0) < self.now:
            line = min(self.lines, key=lambda line: line.free)
            self.due[content] = line.take(self.now, self.read)
        heapq.heappush(self.pending, (self.due[content], self.asked, future, chosen))
        return future

    @property
    def time(self) -> float:
        """The clock now, inside a step too."""
        return self.now + (0.0 if self.begun is None else time.thread_time() - self.begun)

    def run(self, trace: Trace) -> tuple[Floats, Floats]:
        """(seconds to the first token, to the end) of each request."""
        self.trace = trace
        self.first, self.end = np.full(len(trace.at), np.nan), np.full(len(trace.at), np.nan)
        self.active: dict[int, Any] = {}
        sent, count = 0, len(trace.at)
        while sent < count or self.active:
            while self.pending and self.pending[0][0] <= self.now:
                _, _, future, chosen = heapq.heappop(self.pending)
                self.bank.try_to_hold(chosen, "", future)
            while sent < count and trace.at[sent] <= self.now:
                self.send(sent)
                sent += 1
            if not self.step():
                ahead = [float(trace.at[sent])] if sent < count else []
                ahead += [self.pending[0][0]] if self.pending else []
                self.now = max(self.now, min(ahead, default=self.now))
        return self.first, self.end

    def send(self, number: int) -> None:
        """Submit a request; its first token is noted when it comes."""

        def note(event: object) -> None:
            if np.isnan(self.first[number]):
                self.first[number] = self.time - self.trace.at[number]

        name, tokens = str(self.trace.adapter[number]), int(self.trace.tokens[number])
        self.active[number] = self.engine.submit(
            prompt_of(number), name, max_new_tokens=tokens, ends=(), notify=note
        )

    def step(self) -> bool:
        """One step of the engine on the clock; False where it had nothing to do."""
        waiting = {number for number, answer in self.active.items() if not answer.ids}
        self.begun = time.thread_time()
        busy = self.engine.step()
        took, self.begun = time.thread_time() - self.begun, None
        rows = sum(len(answer.ids) > 1 for answer in self.active.values())
        prompts = sum(bool(self.active[number].ids) for number in waiting)
        if not rows and not prompts:
            return False
        if self.times is not None:
            entering = (self.times.prompt + (prompts - 1) * self.times.more) * (prompts > 0)
            took = entering + (self.times.step + self.times.row * rows) * (rows > 0)
            came = [n for n in waiting if self.active[n].ids]
            self.first[came] = self.now + entering - self.trace.at[came]
        self.now += took
        self.steps.append(Step(rows, prompts, took))
        for number, answer in list(self.active.items()):
            if len(answer.ids) == self.trace.tokens[number]:
                self.end[number] = self.now - self.trace.at[number]
                del self.active[number]
        if self.active and not busy:
            raise RuntimeError(f"answers ended before their last token: {sorted(self.active)}")
        return True
