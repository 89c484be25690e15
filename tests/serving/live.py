"""A server of the millisecond Llama on a free port, in a thread of the test's process."""

import contextlib
import threading
import time

import uvicorn

from minilora.serving import Engine, Service
from minilora.serving.app import create_app

from .small import small_bank


def small_service(names="abc", slots=8, **settings):
    """A service over the small base."""
    bank = small_bank(names)
    return Service(Engine(bank, slots), bank, base_name="small", **settings)


@contextlib.contextmanager
def serving(service, routers=(), **config):
    """The address of a running server."""
    app = create_app(service, routers=routers)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5, **config)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def eventually(condition, seconds=5.0):
    """Wait until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never held"
        time.sleep(0.005)
