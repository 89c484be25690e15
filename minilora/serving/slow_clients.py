"""A connection whose request does not arrive is closed: uvicorn itself waits for it forever.

Whoever opens thousands of connections and sends a header line a minute on each (Slowloris, 2009)
holds a file descriptor for each. Here a request must be whole ``ARRIVES_IN`` seconds after it
began. An answer may take as long as it likes; a connection between two requests is uvicorn's
(``timeout_keep_alive``).

Left out: a limit on connections of one address, which a proxy in front knows better.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

ARRIVES_IN = 60.0  # seconds from the connection, or the first byte, to the end of the body


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1; ``uvicorn.Config(app, http=ImpatientProtocol)``."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.watch()

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self.stop()

    def watch(self) -> None:
        """Keep the time while a request is arriving."""
        cycle = self.cycle
        arriving = cycle is None or cycle.response_complete or cycle.more_body
        if not arriving:
            self.stop()
        elif self.timer is None:
            self.timer = self.loop.call_later(ARRIVES_IN, self.transport.close)

    def stop(self) -> None:
        """It has arrived, or never will."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
