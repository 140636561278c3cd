"""Clients that send nothing, send slowly, send too much, do not read, or open too many connections."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY

import pytest

from runtime.server import connection_limits, lingering, request_body
from runtime.server.connection_limits import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    BoundedHttpProtocol,
    network_of,
)
from tests.helpers import PATIENCE
from tests.serving import TOKEN, Client, serve_in_thread

IDLE_TIMEOUT, BODY_TIMEOUT = 1.0, 2.0  # seconds, instead of 10 and 20
PIPELINED = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOGIN_HEAD = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
CHUNKED_HEAD = b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
SOCKET_BUFFERS = 20_000_000  # bytes; more than the kernel accepts for a reader that has stopped


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service closes a connection for its time: not in a slow test, nor instead of another limit."""
    for module, name in (
        (connection_limits, "IDLE_TIMEOUT"),
        (request_body, "BODY_TIMEOUT"),
        (lingering, "LINGER_SILENCE"),
        (lingering, "LINGER_TIMEOUT"),
    ):
        monkeypatch.setattr(module, name, 2 * PATIENCE)


@pytest.fixture
def impatient(patient: None, knowing: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A service with short timeouts."""
    monkeypatch.setattr(connection_limits, "IDLE_TIMEOUT", IDLE_TIMEOUT)
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", BODY_TIMEOUT)
    monkeypatch.setattr(lingering, "LINGER_SILENCE", 0.2)
    with serve_in_thread(knowing) as client:
        yield client


def connect(service: Client, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), source_address=(address, 0))


def get_status(connection: socket.socket, *headers: str) -> int:
    """The status of GET /status; 0 if the service has closed the connection."""
    request = "\r\n".join(("GET /status HTTP/1.1", "Host: localhost", *headers, "\r\n"))
    connection.settimeout(PATIENCE)
    try:
        connection.sendall(request.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.read()
    except ConnectionError:
        return 0
    return answer.status


def sent_before_close(connection: socket.socket, data: bytes, limit: int) -> int:
    """Sends `data` again and again until the service closes the connection, or `limit` bytes are sent."""
    sent = 0
    with suppress(ConnectionError):
        while sent < limit:
            connection.sendall(data)
            sent += len(data)
    return sent


def is_closed(connection: socket.socket, seconds: float = PATIENCE) -> bool:
    """Whether the service closes the connection within `seconds`. Reads nothing."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(1000 * seconds))


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: loc"], ids=["no head", "half a head"])
def test_a_connection_without_a_complete_head_is_closed(impatient: Client, sent: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        connection.settimeout(PATIENCE)
        with suppress(ConnectionError):
            assert connection.recv(100) == b""


def test_a_slow_body_gets_408(impatient: Client) -> None:
    with connect(impatient) as connection:
        connection.sendall(LOGIN_HEAD)
        connection.settimeout(PATIENCE)
        answer = b""
        while part := connection.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"error"' in answer


def test_a_client_that_reads_no_answers_is_disconnected(impatient: Client) -> None:
    with connect(impatient) as connection:
        with suppress(ConnectionError):
            for _ in range(100):  # more answers than the sockets' buffers hold, few requests at a time
                connection.sendall(PIPELINED * (MAX_PIPELINED // 2))
                time.sleep(0.02)
        assert is_closed(connection)


def test_too_many_pipelined_requests_close_the_connection(service: Client) -> None:
    with connect(service) as connection:
        with suppress(ConnectionError):
            connection.sendall(PIPELINED * 500 * MAX_PIPELINED)
        assert is_closed(connection)


def test_other_clients_are_served_next_to_silent_ones(service: Client) -> None:
    silent = [connect(service) for _ in range(20)]
    assert service.get_status("/healthz") == 200
    for connection in silent:
        connection.close()


def test_an_endless_trailer_closes_the_connection(service: Client) -> None:
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 100) for number in range(1000))
    with connect(service) as connection:
        connection.sendall(CHUNKED_HEAD + b"0\r\n")
        assert sent_before_close(connection, fields, 2 * SOCKET_BUFFERS) < SOCKET_BUFFERS


def test_endless_sizes_of_chunks_close_the_connection(service: Client) -> None:
    """An extension of a chunk's size is part of neither the head nor the body (RFC 9112, section 7.1.1)."""
    with connect(service) as connection:
        connection.sendall(CHUNKED_HEAD + b"1;")
        assert sent_before_close(connection, b"a" * 100_000, 2 * SOCKET_BUFFERS) < SOCKET_BUFFERS


def test_pipelined_heads_are_counted_together(service: Client) -> None:
    head = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(head % (b"a" * (MAX_HEAD_BYTES // 2)))  # one such head is accepted
        connection.settimeout(PATIENCE)
        assert b" 200 " in connection.recv(100)
    with connect(service) as connection:
        connection.sendall(head % (b"a" * (MAX_HEAD_BYTES // 2)) * 4)
        assert is_closed(connection)


def test_a_head_of_very_many_fields_closes_the_connection(service: Client) -> None:
    """A field of 4 bytes takes over 100 bytes of memory."""
    with connect(service) as connection:
        assert get_status(connection, *["a:"] * 100) == 200
    with connect(service) as connection:
        assert get_status(connection, *["a:"] * 1000) == 0


def test_a_body_in_small_chunks_is_accepted(service: Client, red_jpeg: bytes) -> None:
    """The sizes of the chunks take more bytes than a head may."""
    photo = red_jpeg + bytes(2 * MAX_HEAD_BYTES)  # JPEG decoders ignore what follows the picture
    chunks = b"".join(b"6\r\n%s\r\n" % photo[at : at + 6] for at in range(0, len(photo) // 6 * 6, 6))
    with connect(service) as connection:
        connection.sendall(CHUNKED_HEAD.replace(b"/login", b"/classify") + chunks + b"0\r\n\r\n")
        connection.settimeout(PATIENCE)
        assert b" 200 " in connection.recv(100)


def test_an_answer_does_not_wait_for_an_acknowledgement(
    service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TCP_NODELAY the second answer of a connection takes 40 ms."""
    no_delay, connection_made = list[bool](), BoundedHttpProtocol.connection_made

    def record(protocol: BoundedHttpProtocol, transport: asyncio.Transport) -> None:
        connection_made(protocol, transport)
        no_delay.append(bool(transport.get_extra_info("socket").getsockopt(IPPROTO_TCP, TCP_NODELAY)))

    monkeypatch.setattr(BoundedHttpProtocol, "connection_made", record)
    with connect(service) as connection:
        assert get_status(connection) == 200
    assert no_delay == [True]


@pytest.mark.parametrize(
    ("path", "status"), [("/classify", 413), ("/classify?large", 413), ("/login", 413), ("/nowhere", 404)]
)
def test_a_client_that_sends_without_waiting_gets_the_error(service: Client, path: str, status: int) -> None:
    """20 MB, sent before anything is read, with Content-Length and without."""
    body = bytes(20_000_000)
    assert service.request("POST", path, iter([body]) if "large" in path else body)[0] == status


def test_a_client_without_the_token_that_sends_without_waiting_gets_401(private: Client) -> None:
    assert private.request("POST", "/classify", bytes(20_000_000))[0] == 401


def test_an_address_replaces_only_its_own_connections(service: Client) -> None:
    other = connect(service, "127.0.0.2")
    crowd = [connect(service) for _ in range(MAX_CONNECTIONS_PER_ADDRESS)]
    with other, connect(service) as newest:
        assert get_status(newest) == 200
        assert is_closed(crowd[0]) and not is_closed(crowd[-1], 0.1)
        assert get_status(other) == 200
    for connection in crowd:
        connection.close()


def test_a_connection_that_is_replaced_gets_503(service: Client) -> None:
    crowd = [connect(service) for _ in range(MAX_CONNECTIONS_PER_ADDRESS + 1)]
    crowd[0].settimeout(PATIENCE)
    answer = http.client.HTTPResponse(crowd[0])
    answer.begin()
    assert answer.status == 503 and answer.headers["Retry-After"] == "1"
    assert "too many connections" in json.loads(answer.read())["error"]
    for connection in crowd:
        connection.close()


@pytest.mark.parametrize("addresses", [1, 8, 300])
def test_stalled_logins_do_not_lock_out_a_client_with_the_token(private: Client, addresses: int) -> None:
    credentials = f"Authorization: Bearer {TOKEN}"
    with connect(private, "127.1.0.1") as signed_in:
        assert get_status(signed_in, credentials) == 200
        attackers = []
        for number in range(MAX_CONNECTIONS + 50):
            attackers.append(
                connect(private, f"127.0.{number % addresses // 200 + 1}.{number % addresses % 200 + 2}")
            )
            with suppress(ConnectionError):
                attackers[-1].sendall(LOGIN_HEAD)
        assert get_status(signed_in, credentials) == 200
        with connect(private, "127.1.0.2") as newest:
            assert get_status(newest, credentials) == 200
    for connection in attackers:
        connection.close()


def test_the_clients_of_an_ipv6_network_share_one_limit() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")
    assert network_of("fe80::1%eth0") == "fe80::"
