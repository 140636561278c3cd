"""What runtime/server/connection_limits.py uses of uvicorn without being promised it.

Run these tests before pyproject.toml allows a newer version of uvicorn or httptools.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import jsonschema
import pytest

from runtime.server.connection_limits import FIELD_BYTES, mark_authorized
from tests.connection import connect, let_app_run
from tests.serving import openapi_schema

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n"
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


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_request_to_upgrade_is_answered_in_http_1_1(size: int) -> None:
    """Its body must not be parsed as the next request (RFC 9110, section 7.8)."""

    async def test() -> None:
        protocol, transport = connect()
        post = POST.removesuffix(b"\r\n") + UPGRADE + b"body"
        chunked = CHUNKED.removesuffix(b"\r\n") + UPGRADE + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        sent = post + GET + chunked + GET.removesuffix(b"\r\n") + UPGRADE + post
        for start in range(0, len(sent), size):
            protocol.data_received(sent[start : start + size])
            await let_app_run()
        answers = transport.written.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert [answer.split()[-1] for answer in answers] == [b"4", b"0", b"5", b"0", b"4"]
        assert protocol._unanswered == [] and not transport.is_closing()
        protocol.data_received(b"CONNECT localhost:80 HTTP/1.1\r\n\r\n" + GET)
        await let_app_run()
        assert transport.written.count(b"HTTP/1.1") == 6 and b"HTTP/1.1 400" in transport.written

    run(test)


@pytest.mark.parametrize("invalid", [b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_an_invalid_request_gets_a_json_error(invalid: bytes) -> None:
    async def test() -> None:
        protocol, transport = connect()
        protocol.data_received(invalid)
        head, _, body = transport.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and b"\r\nconnection: close" in head.lower()
        assert b"content-security-policy: default-src 'none'" in head and transport.is_closing()
        jsonschema.validate(json.loads(body), openapi_schema("Error"))

    run(test)


def test_an_invalid_request_does_not_end_an_answer_that_has_begun() -> None:
    async def begin(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def test() -> None:
        protocol, transport = connect(begin)
        protocol.data_received(GET)
        await let_app_run()
        protocol.data_received(b"nonsense")
        assert transport.written.count(b"HTTP/1.1") == 1 and transport.is_closing()

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
