"""Limits per connection that uvicorn lacks: number of connections, time and size of a request's head.

Subclasses uvicorn's protocol, whose attributes are not a public interface: pyproject.toml caps the versions.
"""

from asyncio import BaseTransport

from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_CONNECTIONS = 256
IDLE_TIMEOUT = 10.0  # seconds to send a request's head, and seconds to read an answer
MAX_HEAD_BYTES = 65_536
MAX_PIPELINED = 100  # requests sent before the answer to an earlier one; browsers do not pipeline


class BoundedHttpProtocol(HttpToolsProtocol):
    _waiting_since: float  # by the event loop's clock
    _head_bytes: int

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._restart_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._awaits_request() else 0
        if self._head_bytes > MAX_HEAD_BYTES or len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._restart_timer()

    def is_timed_out(self) -> bool:
        """Whether the client neither completes a head nor reads an answer for IDLE_TIMEOUT seconds."""
        waits_for_client = self._awaits_request() or self.flow.write_paused
        return waits_for_client and self.loop.time() - self._waiting_since > IDLE_TIMEOUT

    def _restart_timer(self) -> None:
        self._waiting_since, self._head_bytes = self.loop.time(), 0

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def close_timed_out_connections(server: Server) -> None:
    for connection in list(server.server_state.connections):
        if isinstance(connection, BoundedHttpProtocol) and connection.is_timed_out():
            connection.transport.abort()
