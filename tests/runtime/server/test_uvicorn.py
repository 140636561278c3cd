"""What runtime/server/connection_limits.py uses of uvicorn without being promised it.

Run these tests before pyproject.toml allows a newer version of uvicorn or httptools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

from runtime.server.connection_limits import FIELD_BYTES, mark_authorized
from tests.connection import connect, let_app_run

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_connection_knows_its_client_and_is_listed() -> None:
    async def test() -> None:
        protocol, transport = connect()
        assert protocol.address == "192.0.2.1" and protocol.connections == {protocol}
        assert transport.socket.options == [(IPPROTO_TCP, TCP_NODELAY, 1)]
        protocol.connection_lost(None)
        assert protocol.connections == set()

    run(test)


def test_a_request_in_progress_is_a_cycle_that_knows_how_far_it_is() -> None:
    async def test() -> None:
        protocol, transport = connect()
        assert protocol.cycle is None
        protocol.data_received(POST)
        assert protocol.cycle.more_body and not protocol.cycle.response_complete
        protocol.data_received(b"body")
        assert not protocol.cycle.more_body and not protocol.cycle.response_complete
        await let_app_run()
        assert protocol.cycle.response_complete and transport.written.endswith(b"\r\n\r\n4")

    run(test)


def test_requests_in_advance_wait_in_the_pipeline_and_stop_the_reading() -> None:
    async def test() -> None:
        protocol, transport = connect()
        protocol.data_received(GET * 3)
        assert len(protocol.pipeline) == 2 and not transport.is_read
        await let_app_run()
        assert transport.written.count(b"HTTP/1.1 200") == 3 and len(protocol.pipeline) == 0
        assert transport.is_read

    run(test)


def test_a_lost_connection_keeps_no_body() -> None:
    """Its requests may wait for their turn, thousands of them."""

    async def test() -> None:
        protocol, _ = connect()
        protocol.data_received(POST + b"body")
        running = protocol.cycle
        protocol.data_received(POST + b"body")
        ((waiting, _),) = protocol.pipeline
        assert waiting is not running and waiting.body == running.body == b"body"
        protocol.connection_lost(None)
        assert waiting.body == running.body == b""
        assert await running.receive() == {"type": "http.disconnect"}

    run(test)


def test_fields_of_heads_and_trailers_are_counted_and_bodies_are_not() -> None:
    async def test() -> None:
        protocol, _ = connect()
        protocol.data_received(CHUNKED)
        head = len(CHUNKED) + 2 * FIELD_BYTES
        assert protocol._head_bytes == head
        trailer = b"0\r\nX: y\r\nZ: w\r\n\r\n"
        protocol.data_received(trailer)
        assert protocol._head_bytes == head + len(trailer) + 2 * FIELD_BYTES
        await let_app_run()
        assert protocol._head_bytes == 0
        protocol.data_received(CHUNKED + b"1000\r\n" + bytes(4096))
        assert protocol._head_bytes == 0

    run(test)


def test_the_scope_of_a_request_marks_its_connection() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await asyncio.Event().wait()

    async def test() -> None:
        protocol, _ = connect(app)
        protocol.data_received(GET)
        await let_app_run()
        assert not protocol._is_working()
        mark_authorized(scopes[0])
        assert protocol._is_working()

    run(test)


def test_a_client_that_does_not_read_pauses_the_writing() -> None:
    async def test() -> None:
        protocol, _ = connect()
        assert not protocol.flow.write_paused
        protocol.pause_writing()
        assert protocol.flow.write_paused
        protocol.resume_writing()
        assert not protocol.flow.write_paused

    run(test)
