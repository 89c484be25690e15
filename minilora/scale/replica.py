"""A replica of a fleet: one base, one engine, a bank of some adapters, the server's application.

    body → the application of ``serving/app.py``, driven inside this process → pieces of an answer

So bodies, errors and streams are those of the single server, and whatever stands in the replica is
batched by its engine. Nothing here knows Ray; ``ray_serve.py`` puts replicas on it.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hub.semver import check_name

PATIENCE = 90.0  # seconds in which a living replica may take a request


@dataclass(frozen=True)
class Deployment:
    """What is served. ``adapters``: folders by name; ``base``: a folder, None for the shipped one.

    ``most_adapters``: of one replica, the least recently used one goes; ``replicas``: how many, or
    Ray's autoscaling, as ``{"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32}``:
    a replica more when each has above so many requests. Keep the target at or below ``slots``, or
    requests wait for a row while Ray sees no need.

    >>> Deployment({"naval": "mine/adapter"}).replicas
    2
    """

    adapters: Mapping[str, str]
    base: str | None = None
    replicas: int | Mapping[str, Any] = 2
    most_adapters: int = 12
    slots: int = 64
    max_rank: int = 16
    patience: float = PATIENCE
    processors: float = 1.0  # of a replica, as Ray counts them

    def __post_init__(self) -> None:
        for name in ("most_adapters", "slots", "max_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if isinstance(self.replicas, int) and self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        check_names(self.adapters)


def check_names(adapters: Mapping[str, str]) -> None:
    """Raise ``ValueError`` for a name that is not a plain one, or that means something else."""
    from ..serving.service import AUTO, Service

    for name in adapters:
        check_name(name)
        if name in (AUTO, Service.base_name):
            raise ValueError(f"the adapter's name {name!r} is taken: choose another one")


def adapters_named(given: list[str]) -> dict[str, str]:
    """Folders by name. Raises ``ValueError`` for another form, and for a name given twice.

    >>> adapters_named(["naval=mine/adapter"])
    {'naval': 'mine/adapter'}
    """
    adapters: dict[str, str] = {}
    for each in given:
        name, _, folder = each.partition("=")
        if not name or not folder or name in adapters:
            raise ValueError(f"--adapter: expected NAME=FOLDER, each name once, got {each!r}")
        adapters[name] = folder
    return adapters


@dataclass(eq=False)
class Loaded:
    """One load of an adapter into a replica's bank. Whoever holds it keeps the adapter there.

    Ray holds it until the adapter must make room, and a request until its answer has ended. When
    nobody does, the bank may forget the name (``ReplicaOf.forget_released``). There is no
    ``__del__``: Ray would call it by hand while a request still holds the adapter, and Python once
    more afterwards, when the name may stand for a newer load.
    """

    name: str
    number: int  # of the loads of this name: 1, 2, …


async def through(app: Any, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
    """An ASGI application's answer to one request: (status, headers), then pieces of the body.

    Each piece comes when the application sends it. Leaving the loop ends the application's work.
    """
    pieces: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if given:
            return given.pop()
        await asyncio.Event().wait()  # the client stays until the task is cancelled

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            await pieces.put((message["status"], list(message.get("headers", []))))
        elif message["type"] == "http.response.body" and message.get("body"):
            await pieces.put(bytes(message["body"]))

    async def run() -> None:
        await app(scope, receive, send)
        await pieces.put(None)

    task = asyncio.create_task(run())
    try:
        while True:
            get = asyncio.create_task(pieces.get())
            await asyncio.wait({get, task}, return_when=asyncio.FIRST_COMPLETED)
            if not get.done() and pieces.empty():  # the application ended with an error
                get.cancel()
                task.result()
                return
            piece = await get
            if piece is None:
                return
            yield piece
    finally:
        task.cancel()


def scope_of(method: str, path: str, query: str, headers: list[tuple[bytes, bytes]]) -> Any:
    """An ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": query.encode(),
        "headers": headers,
        "client": None,
        "server": None,
    }


def service_of(deployment: Deployment) -> Any:
    """A server's parts, without adapters yet; its list of models names all of them."""
    from ..model.pretrained import load_base
    from ..serving import AdapterBank, Engine, Service

    class Multiplexed(Service):
        """A service whose adapters come and go as Ray has them."""

        def names(self, tenant: Any) -> list[str]:
            """The base, then every adapter of the deployment."""
            return [self.base_name, *sorted(deployment.adapters)]

    base = load_base() if deployment.base is None else load_base(deployment.base)
    bank = AdapterBank(base, deployment.max_rank)
    return Multiplexed(Engine(bank, slots=deployment.slots), bank)


class ReplicaOf:
    """One replica, without Ray: the application, its engine, the adapters it has."""

    def __init__(self, deployment: Deployment):
        from ..serving.app import create_app

        self.deployment, self.service = deployment, service_of(deployment)
        self.app = create_app(self.service)
        self.opening = asyncio.Lock()
        self.context: Any = None
        self.loads: dict[str, int] = {}
        self.released: deque[tuple[str, int]] = deque()  # (name, number) that nobody holds

    async def open(self) -> None:
        """Start the engine in the loop that will use it."""
        async with self.opening:
            if self.context is None:
                self.context = self.app.router.lifespan_context(self.app)
                await self.context.__aenter__()

    def load(self, name: str) -> Loaded:
        """Read an adapter into the bank; Ray does so one at a time.

        Raises ``ValueError``, ``OSError``.
        """
        self.forget_released()
        self.service.bank.load(name, Path(self.deployment.adapters[name]), replace=True)
        self.loads[name] = self.loads.get(name, 0) + 1
        loaded = Loaded(name, self.loads[name])
        # it only takes a note: it runs wherever Python tidies up, and the bank has a lock
        weakref.finalize(loaded, self.released.append, (name, loaded.number)).atexit = False
        return loaded

    def forget_released(self) -> None:
        """Forget each name that nobody holds any more and that was not loaded again since."""
        while self.released:
            name, number = self.released.popleft()
            if number == self.loads[name]:
                self.service.bank.unload(name)

    def report(self) -> dict[str, Any]:
        """Who this is, and how often it loaded what."""
        return {"pid": os.getpid(), "loads": self.loads, "names": self.service.bank.names()}
