"""Clients that send nothing, send slowly, or do not read."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.server import connection_limits, request_body
from runtime.server.connection_limits import MAX_PIPELINED
from tests.serving import Client, serve_in_thread

IDLE_TIMEOUT, BODY_TIMEOUT = 1.0, 2.0  # seconds, instead of 10 and 20
SWEEP = 3.0  # seconds until the service has closed what timed out
PIPELINED = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOGIN_HEAD = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"


@pytest.fixture(scope="module")
def impatient(knowing: Path) -> Iterator[Client]:
    """A service with short timeouts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection_limits, "IDLE_TIMEOUT", IDLE_TIMEOUT)
        patch.setattr(request_body, "BODY_TIMEOUT", BODY_TIMEOUT)
        with serve_in_thread(knowing) as client:
            yield client


def connect(service: Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port))


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the service closes the connection. Reads nothing."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP)
    return bool(poll.poll(1000 * seconds))


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: loc"], ids=["no head", "half a head"])
def test_a_connection_without_a_complete_head_is_closed(impatient: Client, sent: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        connection.settimeout(IDLE_TIMEOUT + SWEEP)
        with suppress(ConnectionError):
            assert connection.recv(100) == b""


def test_a_slow_body_gets_408(impatient: Client) -> None:
    with connect(impatient) as connection:
        connection.sendall(LOGIN_HEAD)
        connection.settimeout(BODY_TIMEOUT + SWEEP)
        answer = b""
        while part := connection.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"error"' in answer


def test_a_client_that_reads_no_answers_is_disconnected(impatient: Client) -> None:
    with connect(impatient) as connection:
        for _ in range(40):  # more answers than the sockets' buffers hold, few requests at a time
            connection.sendall(PIPELINED * (MAX_PIPELINED // 5))
            time.sleep(0.03)
        assert is_closed_within(connection, IDLE_TIMEOUT + SWEEP)


def test_too_many_pipelined_requests_close_the_connection(service: Client) -> None:
    with connect(service) as connection:
        with suppress(ConnectionError):
            connection.sendall(PIPELINED * 100 * MAX_PIPELINED)
        assert is_closed_within(connection, 3)


def test_other_clients_are_served_next_to_silent_ones(impatient: Client) -> None:
    silent = [connect(impatient) for _ in range(20)]
    assert impatient.get_status("/healthz") == 200
    for connection in silent:
        connection.close()
