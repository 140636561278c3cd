"""Connections that only cost: uvicorn bounds neither their number nor how long a request's head may take."""

from asyncio import BaseTransport

from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_CONNECTIONS = 256
HEAD_SECONDS = 10.0  # for a request's head to come, and for an answer to be read
MAX_HEAD = 65_536  # bytes
MAX_PIPELINED = (
    100  # requests sent before the answer to an earlier one; each takes some kB, no browser does it
)


class BoundedHttpProtocol(HttpToolsProtocol):
    _since: float
    _head: int  # bytes

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait()
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head = self._head + len(data) if self._is_idle() else 0
        if self._head > MAX_HEAD or len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def is_late(self) -> bool:
        """Whether a head does not come, or an answer that the sockets' buffers cannot take is not read."""
        waits = self._is_idle() or self.flow.write_paused
        return waits and self.loop.time() - self._since > HEAD_SECONDS

    def _wait(self) -> None:
        self._since, self._head = self.loop.time(), 0

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def drop_late(server: Server) -> None:
    for connection in list(server.server_state.connections):
        if isinstance(connection, BoundedHttpProtocol) and connection.is_late():
            connection.transport.abort()
