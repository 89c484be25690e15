"""Worker processes of one machine: started, watched, started again.

A worker is a whole server of its own (``minilora serve --port 0``): its first line says where it
listens. One that dies is started again, at first at once and then ever later while it keeps dying.
The worker has the gateway's end of a pipe as its standard input, which closes when the gateway is
gone, however it went; the worker then ends too, so nothing is left behind.

Each worker gets its share of the cores (``OMP_NUM_THREADS``): N times all cores would be slower.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from typing import Any

from .upstreams import Upstream

READY = re.compile(r"ready at http://\S+:(\d+)\b")
LONGEST_PAUSE, CALM = 30.0, 60.0  # seconds


class Workers:
    """``count`` processes of ``arguments``, each behind an ``Upstream``; ``async with`` them.

    Entering waits until all are ready once. Raises ``ValueError`` when one ends before that.

    >>> workers = Workers(["serve"], 2)
    >>> [upstream.name for upstream in workers.upstreams], workers.command[-2:]
    (['worker-0', 'worker-1'], ['minilora', 'serve'])
    """

    def __init__(self, arguments: Sequence[str], count: int, grace: float = 30.0):
        self.command = [sys.executable, "-m", "minilora", *arguments]
        self.upstreams = [Upstream(f"worker-{number}") for number in range(count)]
        self.grace = grace
        self.processes: dict[str, Process] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Workers:
        first = [asyncio.get_running_loop().create_future() for _ in self.upstreams]
        pairs = zip(self.upstreams, first, strict=True)
        self.tasks = [asyncio.create_task(self.keep(each, ready)) for each, ready in pairs]
        try:
            await asyncio.gather(*first)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def keep(self, upstream: Upstream, first: asyncio.Future[None]) -> None:
        """Run one worker, again and again."""
        pause = 0.0
        while True:
            began = time.monotonic()
            status: int | str | None
            try:
                status = await self.run_once(upstream, first)
            except (OSError, ValueError) as error:  # no memory for it, or a line without an end
                status = repr(error)
            if not first.done():
                first.set_exception(ValueError(f"{upstream.name} ended with status {status}"))
                return
            pause = 0.0 if time.monotonic() - began > CALM else min(2 * pause + 0.5, LONGEST_PAUSE)
            print(f"{upstream.name} ended with status {status}: started again", file=sys.stderr)
            await asyncio.sleep(pause)

    async def run_once(self, upstream: Upstream, first: asyncio.Future[None]) -> int | None:
        """One process from start to end; its status."""
        share = str(max(1, (os.cpu_count() or 1) // len(self.upstreams)))
        environment = {"OMP_NUM_THREADS": share, **os.environ}
        process = await asyncio.create_subprocess_exec(
            *self.command, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True
        )
        self.processes[upstream.name] = process
        upstream.kill = process.kill
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                if match := READY.search(line.decode(errors="replace")):
                    upstream.address = f"http://127.0.0.1:{match[1]}"
                    if not first.done():
                        first.set_result(None)
                elif line.startswith(b"note: ") and upstream is self.upstreams[0]:
                    print(line.decode(errors="replace").rstrip(), flush=True)
            return await process.wait()
        finally:
            upstream.address = None
            upstream.go_down()
            await end(process, self.grace)


async def end(process: Process, grace: float) -> None:
    """Ask a process to end, and after ``grace`` seconds make it."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
