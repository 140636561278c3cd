"""Limits per connection and per client address that uvicorn lacks.

Subclasses uvicorn's protocol, whose attributes are not a public interface: pyproject.toml caps the versions,
and tests/runtime/server/test_uvicorn.py checks each attribute that is used here.
"""

from asyncio import BaseTransport
from collections import Counter
from collections.abc import MutableMapping
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from runtime.server.error_response import closing_answer
from runtime.server.errors import RequestRejected
from runtime.server.open_files import connections_within_limit

MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_ADDRESS = 64  # a browser opens 6
IDLE_TIMEOUT = 10.0  # seconds to send a request's head, and seconds to read an answer
MAX_HEAD_BYTES = 65_536  # of one connection: unanswered heads, sizes of chunks, and trailers
FIELD_BYTES = 128  # the memory of a header field beyond its text, counted as if it were sent
MAX_PIPELINED = 16  # requests sent before the answer to an earlier one; browsers do not pipeline
PARSED_AT_ONCE = 16_384  # bytes; limits are checked in between

_INVALID_REQUEST = RequestRejected(
    400, "not a valid HTTP request: percent-encode letters of the address that are not ASCII, such as %C3%A4"
)
_TOO_MANY_CONNECTIONS = RequestRejected(503, "too many connections: retry in 1 s", retry_after=1)
_MARK_AUTHORIZED = "mark_authorized"  # in the ASGI scope's state


class BoundedHttpProtocol(HttpToolsProtocol):
    """A connection with limits on its head, its pipelined requests and its idle time.

    It also limits connections: for a new one over a limit, an old one is closed, first without the token.
    """

    address: str  # the client's; one for all clients of an IPv6 network
    is_dropped = False
    _is_authorized = False
    _connected_at: float  # by the event loop's clock
    _waiting_since: float
    _head_bytes = 0
    _unanswered: list[
        RequestResponseCycle
    ]  # uvicorn's `cycle` is the newest request, not the request in work

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._unanswered = []
        self.address = network_of(self.client[0] if self.client else "")
        self._connected_at = self._waiting_since = self.loop.time()
        # asyncio sets it only on sockets that name the protocol. Without it each answer waits for the
        # client's delayed acknowledgement, 40 ms.
        with suppress(OSError):  # macOS refuses it on a connection that the client has reset
            transport.get_extra_info("socket").setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self._make_room()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PARSED_AT_ONCE):
            part = data[start : start + PARSED_AT_ONCE]
            self._head_bytes += len(part)
            self._parse(part)
            if self._head_bytes > MAX_HEAD_BYTES or len(self.pipeline) > MAX_PIPELINED:
                self._drop()
            if self.transport.is_closing():
                return

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # The requests may still wait for their turn (request_rate.py): thousands of them from one address.
        for cycle in self._unanswered:
            cycle.disconnected, cycle.body = True, bytearray()
            cycle.message_event.set()

    def _parse(self, data: bytes) -> None:
        """Does the same as uvicorn's data_received, except that requests to upgrade are answered in HTTP/1.1.

        The clients of Java and `curl --http2` ask for an upgrade with each request (RFC 9110, section 7.8).
        """
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._feed(data)
        except HttpParserError:
            self.send_400_response("")

    def _feed(self, data: bytes) -> bytes:
        """Parses bytes, and returns the bytes to parse next: a request to upgrade, as one without it."""
        try:
            self.parser.feed_data(data)
            return b""
        except HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        head = self._head_without_upgrade()
        self.parser = HttpRequestParser(self)  # the old one takes the body for another protocol
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return head + rest

    def _head_without_upgrade(self) -> bytes:
        """The head of the parsed request, without its field Upgrade. Raises HttpParserError for CONNECT."""
        if (method := self.parser.get_method()) == b"CONNECT":
            raise HttpParserError("not a proxy")
        start = b"%s %s HTTP/%s\r\n" % (method, self.url, self.parser.get_http_version().encode())
        fields = (b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade")
        return start + b"".join(fields) + b"\r\n"

    def _should_upgrade(self) -> bool:  # True: uvicorn does not answer the request that is parsed again
        return True

    def send_400_response(self, msg: str) -> None:
        self._write_error(_INVALID_REQUEST)
        self.transport.close()

    def _write_error(self, rejection: RequestRejected) -> None:
        if not any(cycle.response_started for cycle in self._unanswered):
            self.transport.write(closing_answer(rejection))

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self._unanswered.append(self.cycle)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][_MARK_AUTHORIZED] = self._mark_authorized

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)  # also called for trailers
        self._head_bytes += FIELD_BYTES

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        # Twice: a body pays for the sizes of its chunks too.
        self._head_bytes = max(0, self._head_bytes - 2 * len(body))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._waiting_since = self.loop.time()
        if not self.pipeline:
            self._head_bytes = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waiting_since = self.loop.time()

    def is_timed_out(self) -> bool:
        """Whether the client neither completes a head nor reads an answer for IDLE_TIMEOUT seconds."""
        waits_for_client = self._awaits_request() or self.flow.write_paused
        return waits_for_client and self.loop.time() - self._waiting_since > IDLE_TIMEOUT

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _mark_authorized(self) -> None:
        self._is_authorized = True

    def _is_working(self) -> bool:
        """Whether the service works on a complete request that was authorized."""
        return self._is_authorized and not self._awaits_request() and not self.cycle.more_body

    def _make_room(self) -> None:
        """Closes a connection if this new one exceeds a limit: no client can take all connections.

        Connections without the token are closed first, among them those of the address that has most.
        """
        connections = [each for each in self.connections if isinstance(each, BoundedHttpProtocol)]
        connections = [each for each in connections if not each.is_dropped]
        candidates = [each for each in connections if each.address == self.address]
        if len(candidates) <= MAX_CONNECTIONS_PER_ADDRESS:
            candidates = connections
            if len(connections) <= connections_within_limit(MAX_CONNECTIONS):
                return
        count = Counter(each.address for each in connections)
        replaceable = (each for each in candidates if each is not self and not each._is_working())
        oldest = max(
            replaceable,
            key=lambda each: (not each._is_authorized, count[each.address], -each._connected_at),
            default=self,
        )
        oldest._write_error(_TOO_MANY_CONNECTIONS)  # best effort: a client that is sending may miss it
        oldest._drop()

    def _drop(self) -> None:
        self.is_dropped = True
        self.transport.abort()


def mark_authorized(scope: MutableMapping[str, Any]) -> None:
    """Records that a request's client may use the service: its connection is closed last."""
    mark = scope.get("state", {}).get(_MARK_AUTHORIZED)
    if mark is not None:
        mark()


def close_timed_out_connections(server: Server) -> None:
    """Closes the connections that sent no head, or read no answer, for IDLE_TIMEOUT."""
    for connection in list(server.server_state.connections):
        if isinstance(connection, BoundedHttpProtocol) and connection.is_timed_out():
            connection.transport.abort()


def network_of(host: str) -> str:
    """The address that limits count: an IPv4 address, or the /64 network that an IPv6 client chooses from."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)
