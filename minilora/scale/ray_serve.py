"""The server on Ray Serve: replicas that each hold a base, an engine and a bank of some adapters.

    client → proxy → Ingress → a Replica that has the adapter, or will → the server's own app

**What Ray does**: processes on one machine or many, restarts, autoscaling, and
``serve.multiplexed``: a request that names an adapter goes to a replica that has it in memory, and
only where none has it, or all that have it are full, does another load it. The least recently used
adapter of a replica makes room.

**What is ours**: a replica answers with the server's own application (``replica.py``). The ingress
reads the model's name. It sends a request to another replica as long as no byte of the answer has
come; Ray itself gives up a request whose replica died after it was started, with a 500 in plain
text. After the first byte nobody may begin anew: a stream ends with an ``error`` event. Where no
replica takes the request, Ray's handle would wait without a limit; the ingress waits ``patience``
seconds and answers 503.

    python -m minilora.scale.ray_serve --adapter naval=mine/adapter --replicas 2

Settings of Ray that bite, and what ``running`` does about them: ``RAY_AUTH_MODE`` other than
``disabled`` writes a token into the home folder; a busy machine needs longer than Ray's 30 seconds
to start (``RAY_raylet_start_wait_time_s``); its processes run at niceness 15 unless
``RAY_worker_niceness`` says otherwise, so beside other work they starve; usage statistics would be
sent.

Left out: keys of tenants and the hub, which the application has and this module does not pass on;
load and unload by request (Ray loads when somebody asks); metrics, feedback and experiments, which
would be those of one replica. Paths other than ``is_passed_on`` get a 404. docs/scale.md has what
was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..serving.bodies import json_fields, read_body
from ..serving.refusals import Refused, wait_first
from .replica import PATIENCE, Deployment, Loaded, ReplicaOf, adapters_named, scope_of, through

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # or it writes a token into the home folder
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
GENERATION = ("/v1/chat/completions", "/v1/completions")
READING = ("/", "/health", "/ready", "/v1/models")
TAKEN = None  # what a replica gives first: it has the request
Start = tuple[int, list[tuple[bytes, bytes]]]  # status, headers


def application(deployment: Deployment) -> Any:
    """The deployment as Ray Serve's application, for ``serve.run``."""
    from ray import serve

    most = deployment.most_adapters
    scaling: dict[str, Any] = {"num_replicas": deployment.replicas}
    if not isinstance(deployment.replicas, int):
        scaling = {"autoscaling_config": dict(deployment.replicas)}

    class Replica(ReplicaOf):
        """A replica as Ray sees it."""

        @serve.multiplexed(max_num_models_per_replica=most)
        async def adapter(self, name: str) -> Loaded:
            """Have an adapter here; Ray remembers who has which."""
            return await asyncio.to_thread(self.load, name)

        async def ask(
            self, method: str, path: str, query: str, headers: Any, body: bytes
        ) -> AsyncIterator[Any]:
            """``TAKEN`` at once, then the answer: status and headers, the body as it comes."""
            yield TAKEN
            await self.open()
            name = serve.get_multiplexed_model_id()
            try:
                here = await self.adapter(name) if name else None
            except (ValueError, OSError) as error:
                refused = Refused(
                    400, f"{name}: {error}", param="model", code="adapter_unavailable"
                )
                yield refused.status, [(b"content-type", b"application/json")]
                yield json.dumps(refused.body()).encode()
                return
            async for piece in through(self.app, scope_of(method, path, query, headers), body):
                yield piece
            del here  # the adapter stayed in the bank until the answer's end

        async def reported(self) -> dict[str, Any]:
            """The report, to whoever asks."""
            return self.report()

        def check_health(self) -> None:
            """Raises when the engine's thread has ended."""
            thread = self.service.engine.thread
            if thread is not None and not thread.is_alive():
                raise RuntimeError("the engine's thread has ended")

    options = {"num_cpus": deployment.processors}
    replica = serve.deployment(
        Replica, name="replica", max_ongoing_requests=2 * deployment.slots,
        ray_actor_options=options, **scaling,
    )  # fmt: skip
    ingress = serve.deployment(
        Ingress, name="ingress", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(replica.bind(deployment), sorted(deployment.adapters), deployment.patience)


@dataclass
class Ingress:
    """Reads which adapter is asked for, and asks the replicas until one begins to answer."""

    replicas: Any
    adapters: list[str]
    patience: float = PATIENCE
    retries: int = field(default=0, init=False)

    async def __call__(self, request: Any) -> Any:
        """A Starlette response to a Starlette request."""
        from starlette.responses import JSONResponse

        try:
            return await self.answer(request, await read_body(request))
        except Refused as refused:
            return JSONResponse(refused.body(), refused.status, refused.headers)

    async def answer(self, request: Any, body: bytes) -> Any:
        """The response of a replica, or a report. Raises ``Refused``."""
        from starlette.responses import JSONResponse, StreamingResponse

        path = request.url.path
        if path == "/replicas":
            return JSONResponse({"retries": self.retries, "replica": await self.one_report()})
        if not is_passed_on(path):
            message = f"{path[:80]!r} is not served by a fleet; minilora serve may have it"
            raise Refused(404, message, code="not_passed_on")
        headers = [(bytes(key), bytes(value)) for key, value in request.headers.raw]
        asked = (request.method, path, request.url.query, headers, body)
        name = adapter_asked(path, body, self.adapters)
        begun = await self.begin(name, asked)
        if begun is None:
            raise wait_first(5, "no replica takes this request", 503, "no_server")
        (status, kept), first, rest = begun
        events = any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in kept)
        response = StreamingResponse(pieces_of(first, rest, events), status)
        response.raw_headers = [pair for pair in kept if pair[0] != b"transfer-encoding"]
        return response

    async def one_report(self) -> Any:
        """Of any replica."""
        return await self.replicas.reported.remote()

    async def begin(self, name: str, asked: tuple[Any, ...]) -> tuple[Start, bytes, Any] | None:
        """(status and headers, the first bytes, the rest) of the first replica that answers.

        None where no replica takes the request in ``patience`` seconds. One that has taken it may
        compute for as long as it lives.
        """
        from ray.exceptions import RayActorError

        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            answer = self.replicas.options(multiplexed_model_id=name, stream=True).ask.remote(
                *asked
            )
            try:
                await asyncio.wait_for(anext(answer), end - time.monotonic())  # TAKEN
                start = await anext(answer)
                return start, await anext(answer, b""), answer
            except RayActorError:  # it died before the first byte: nobody has got anything
                self.retries += 1
                await asyncio.sleep(0.2)
            except asyncio.TimeoutError:
                answer.cancel()
        return None


def is_passed_on(path: str) -> bool:
    """Whether a path is asked of any replica: all of them would answer alike, and none changes.

    >>> is_passed_on("/v1/models/naval"), is_passed_on("/v1/unload_lora_adapter")
    (True, False)
    """
    return path in (*GENERATION, *READING) or path.startswith("/v1/models/")


def adapter_asked(path: str, body: bytes, adapters: list[str]) -> str:
    """The adapter that a request is about, or "": the base, or what the application will refuse.

    >>> adapter_asked("/v1/completions", b'{"model": "naval"}', ["naval"])
    'naval'
    >>> adapter_asked("/v1/completions", b'{"model": "nobody"}', ["naval"])
    ''
    """
    if path not in GENERATION:
        return ""
    name = json_fields(body).get("model")
    return name if isinstance(name, str) and name in adapters else ""


async def pieces_of(first: bytes, rest: Any, events: bool) -> AsyncIterator[bytes]:
    """An answer's body; one that breaks off says so, as ``serving/relay.py`` does."""
    from ray.exceptions import RayActorError

    from ..serving.events import event

    yield first
    try:
        async for piece in rest:
            yield piece
    except RayActorError:
        if not events:
            raise
        lost = Refused(502, "the replica was lost in the middle of this answer", code="server_lost")
        yield event(lost.body()).encode()


@contextmanager
def running(deployment: Deployment, port: int = 8000, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve for as long as the block lasts; gives the address. Every process ends with it.

    Raises ``ValueError`` without the extra and for an adapter's folder that does not exist,
    ``RuntimeError`` where Ray runs in this process.
    """
    for name, folder in deployment.adapters.items():
        if not Path(folder).is_dir():
            raise ValueError(f"{name}: expected an adapter's folder, got {folder!r}")
    os.environ.update({key: os.environ.get(key, value) for key, value in SETTINGS.items()})
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'minilora[scale]'") from error
    if ray.is_initialized():
        raise RuntimeError("Ray runs in this process already: call serve.run(application(…))")
    replicas = deployment.replicas
    count = replicas if isinstance(replicas, int) else int(replicas.get("max_replicas", 1))
    ray.init(
        num_cpus=int(count * deployment.processors) + 1,
        include_dashboard=False,
        object_store_memory=100_000_000,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        serve.start(
            http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"}
        )
        serve.run(application(deployment), name="minilora", route_prefix="/")
        yield f"http://{host}:{port}"
    finally:
        try:
            serve.shutdown()
        finally:
            ray.shutdown()


def main() -> None:
    """``python -m minilora.scale.ray_serve``."""
    parser = argparse.ArgumentParser(description="minilora on Ray Serve")
    add = parser.add_argument
    add("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="may be repeated")
    add("--base", help="folder of the base (default: the shipped one)")
    add("--replicas", type=int, default=2, help="default: %(default)s")
    add("--most-adapters", type=int, default=12, help="of a replica (default: %(default)s)")
    add("--port", type=int, default=8000, help="default: %(default)s")
    options = parser.parse_args()
    try:
        adapters = adapters_named(options.adapter)
        deployment = Deployment(adapters, options.base, options.replicas, options.most_adapters)
        with running(deployment, options.port) as address:
            print(f"ready at {address}", flush=True)
            while True:
                time.sleep(3600)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
