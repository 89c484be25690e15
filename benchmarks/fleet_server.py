"""The simulation beside the real server: its application, its engine and its bank, asked by ASGI.

Everything that ``minilora serve`` does for a request is done, but for the socket: JSON, checks, the
thread that tokenizes, the engine's own thread, events gathered into a stream. The clock is the
processor time of the whole process, as if it had one core; where nobody is being answered, it jumps
to the next arrival. So the load of the machine moves it little.

What HTTP takes beside the engine's steps is fitted to other runs: so many seconds a request, so
many a token. The simulation gets them with the prompt and with the row.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from minilora.scale.replica import scope_of, through
from minilora.serving import Engine, Service
from minilora.serving.app import create_app

from .fleet_check import Step, filled_bank, fitted_times, prompt_of, read_seconds
from .fleet_model import Floats, Times, Trace

POLL = 0.005  # wall seconds between two looks at whether the next request is due
HEADERS = [(b"content-type", b"application/json")]


class RealApplication:
    """A server that answers one trace; ``steps``: its engine's, ``cpu``: seconds of all of it."""

    def __init__(self, bank: Any, slots: int):
        self.bank, self.engine = bank, Engine(bank, slots=slots)
        self.app = create_app(Service(self.engine, bank))
        self.steps: list[Step] = []
        self.answers: list[Any] = []
        self.asked = self.hits = 0
        self.cpu = self.jumped = 0.0
        self.real = self.engine.submit, self.engine.step, bank.fetch
        self.engine.submit = self.submit  # type: ignore[method-assign]
        self.engine.step = self.step  # type: ignore[method-assign]
        bank.fetch = self.fetch

    def submit(self, *asked: Any, **more: Any) -> Any:
        """The engine's, for answers of just so many tokens."""
        answer = self.real[0](*asked, **{**more, "ends": ()})
        self.answers.append(answer)
        return answer

    def fetch(self, chosen: Any, tenant: str = "") -> Any:
        """The bank's, counted."""
        self.asked += 1
        self.hits += chosen[0][1].content in self.bank.cache
        return self.real[2](chosen, tenant)

    def step(self) -> Any:
        """The engine's, timed in its thread."""
        here = list(self.answers)  # another thread may add one
        lengths = [len(answer.ids) for answer in here]
        begun = time.thread_time()
        busy = self.real[1]()
        took = time.thread_time() - begun
        grown = [(old, len(a.ids) - old) for old, a in zip(lengths, here, strict=True)]
        prompts = sum(old == 0 and new > 0 for old, new in grown)
        rows = sum(new for _, new in grown) - prompts
        if rows or prompts:
            self.steps.append(Step(rows, prompts, took))
        for answer in here:
            if len(answer.ids) == answer.request.sampling.max_new_tokens:
                self.answers.remove(answer)
        return busy

    def clock(self) -> float:
        """Processor seconds since the start, and what was jumped over."""
        return time.process_time() - self.begun + self.jumped

    async def run(self, trace: Trace) -> tuple[Floats, Floats]:
        """(seconds to the first token, to the end) of each request."""
        count = len(trace.at)
        self.first, self.end = np.full(count, np.nan), np.full(count, np.nan)
        async with self.app.router.lifespan_context(self.app):
            tasks: set[asyncio.Task[None]] = set()
            self.begun = time.process_time()
            for number in range(count):
                while (ahead := float(trace.at[number]) - self.clock()) > 0:
                    if tasks:
                        await asyncio.sleep(POLL)
                    else:
                        self.jumped += ahead
                task = asyncio.create_task(self.ask(number, trace))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            self.cpu = time.process_time() - self.begun
        return self.first, self.end

    async def ask(self, number: int, trace: Trace) -> None:
        """One request, read as a stream."""
        fields = {"model": str(trace.adapter[number]), "prompt": prompt_of(number)}
        fields |= {"max_tokens": int(trace.tokens[number]), "temperature": 0, "stream": True}
        scope = scope_of("POST", "/v1/completions", "", HEADERS)
        async for piece in through(self.app, scope, json.dumps(fields).encode()):
            if isinstance(piece, tuple) and piece[0] != 200:
                raise RuntimeError(f"the server answered {piece[0]}")
            if isinstance(piece, bytes) and np.isnan(self.first[number]):
                self.first[number] = self.clock() - trace.at[number]
        self.end[number] = self.clock() - trace.at[number]


class Overhead:
    """What HTTP takes beside the engine: seconds a request and a token, by least squares."""

    def __init__(self) -> None:
        self.table: list[tuple[int, int]] = []
        self.seconds: list[float] = []
        self.steps: list[Step] = []

    def add(self, server: RealApplication, trace: Trace) -> None:
        """A run's processor time without that of the engine's steps."""
        self.table.append((len(trace.at), int(trace.tokens.sum())))
        self.seconds.append(server.cpu - sum(step.seconds for step in server.steps))
        self.steps += server.steps

    def times(self, folders: list[Path]) -> tuple[Times, float, float]:
        """The server's times for the simulation; HTTP's seconds a request, and a token."""
        bank = filled_bank(folders)
        nbytes = max(known.nbytes for known in bank.known.values())
        engine = fitted_times(self.steps, read_seconds(bank), nbytes)
        table = np.array(self.table, dtype=float)
        request, token = np.maximum(np.linalg.lstsq(table, self.seconds, rcond=None)[0], 0).tolist()
        added = {"prompt": engine.prompt + request, "more": engine.more + request}
        return engine._replace(row=engine.row + token, **added), request, token
