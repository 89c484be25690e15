"""``minilora serve --workers N``: N whole servers on this machine behind one address.

The gateway (serving/gateway.py) loads no model. It starts the workers with the same options, keeps
them running, and sends an adapter's requests to the same few of them.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import socket
import threading
import time
from typing import Any

from .serve_keys import warning_of

OWN = ("workers", "service", "host", "port", "worker", "action")  # not the workers'


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """``--workers``, ``--service``, and what the gateway tells its workers."""
    add = parser.add_argument
    many = "processes behind one address (default: this one alone)"
    add("--workers", type=int, default=0, metavar="N", help=many)
    own = "these adapters are another server's, a domain of its own; may be repeated"
    add("--service", action="append", default=[], metavar="NAME,…=URL", help=own)
    add("--worker", action="store_true", help=argparse.SUPPRESS)


def worker_arguments(options: argparse.Namespace) -> list[str]:
    """The command line of a worker with the same options.

    >>> worker_arguments(argparse.Namespace(adapter=["a=x"], qlora=True, name=None, workers=2))
    ['serve', '--worker', '--port', '0', '--adapter', 'a=x', '--qlora']
    """
    words = ["serve", "--worker", "--port", "0"]
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        if name in OWN or value is None or value is False:
            continue
        if isinstance(value, list):
            words += [word for each in value for word in (option, str(each))]
        else:
            words += [option] if value is True else [option, str(value)]
    return words


def end_with_the_gateway() -> None:
    """In a worker: stop when the gateway's end of the pipe closes, however the gateway ended."""

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held while Python ends
            pass
        while True:  # again: a signal that comes while the handlers change may be lost
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60.0)

    threading.Thread(target=wait, name="gateway", daemon=True).start()


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the port for itself, and does not listen yet; of a name, its IPv4 address.

    Raises ``ValueError`` where another server has the port, also one that is still loading: with
    ``SO_REUSEADDR`` on both, Linux would let the two wait side by side until one listens.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            place.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or os.name != "posix":
                raise
            reuse_address(place, True)  # it may have had its last server within this minute
            place.bind((host, port))
            reuse_address(place, False)
    except (OSError, OverflowError) as error:
        place.close()
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        advice = "--port 0 takes any free"
        if isinstance(error, socket.gaierror):
            advice = "--host takes an address of this machine"
        elif getattr(error, "errno", None) == errno.EADDRINUSE:
            advice = f"another server runs there, or is loading: stop it, or {advice}"
        raise ValueError(f"cannot listen on port {port} of {host}: {why}; {advice}") from None
    return place


def listen(place: socket.socket, backlog: int) -> None:
    """Listen, and leave the port free for the next server once this one has ended.

    Nothing stands between the two calls: a socket that allows others and does not listen yet would
    let a second server bind. uvicorn calls ``listen`` again, which changes nothing.
    """
    reuse_address(place, True)  # else the port, once the server has ended, is closed for a minute
    place.listen(backlog)


def reuse_address(place: socket.socket, yes: bool) -> None:
    """Whether others may bind this address while nobody listens there."""
    if os.name == "posix":  # elsewhere the option means that two may listen at once
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(yes))


def services_of(options: argparse.Namespace) -> list[tuple[list[str], str]]:
    """(adapters, address) of each ``--service``. Raises ``ValueError``."""
    found = []
    for given in options.service:
        names, _, address = given.partition("=")
        if not names or not address.startswith(("http://", "https://")):
            raise ValueError(f"--service: expected NAME,…=http://…, got {given!r}")
        found.append((names.split(","), address.rstrip("/")))
    return found


def check_gateway(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` for workers that no gateway can have."""
    if (options.workers or options.service) and options.workers < 1:
        raise ValueError(f"--workers: expected at least 1, got {options.workers}")
    services_of(options)


def run_gateway(options: argparse.Namespace, place: socket.socket) -> int:
    """Serve on a bound socket until a signal."""
    asyncio.run(serve(options, place))
    print("stopped")
    return 0


async def serve(options: argparse.Namespace, place: socket.socket) -> None:
    """The workers, the gateway before them, and a socket."""
    import uvicorn

    from ..serving.gateway import Gateway
    from ..serving.slow_clients import ImpatientProtocol
    from ..serving.upstreams import Upstream
    from ..serving.workers import Workers

    services = [Upstream(url, url, names) for names, url in services_of(options)]
    workers = Workers(worker_arguments(options), options.workers, grace=options.grace)

    class Server(uvicorn.Server):
        """Says when it is ready."""

        async def startup(self, sockets: Any = None) -> None:
            """Listen, then say so."""
            listen(place, self.config.backlog)
            await super().startup(sockets)
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                host = "localhost" if options.host == "127.0.0.1" else options.host
                many = f"{options.workers} workers" + (
                    f", {len(services)} services" * bool(services)
                )
                print(f"ready at http://{host}:{port}   {many}", flush=True)
                if warning := warning_of(options.host, options.state):
                    print(warning, flush=True)

    async with workers, Gateway([*workers.upstreams, *services]) as gateway:
        config = uvicorn.Config(
            gateway,
            log_level="warning",
            access_log=False,
            http=ImpatientProtocol,
            lifespan="off",
            timeout_graceful_shutdown=options.grace,
        )
        signal.signal(
            signal.SIGTERM, lambda *_: None
        )  # uvicorn raises it again when it has drained
        await Server(config).serve([place])
