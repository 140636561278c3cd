"""A client that sends on after an early answer is read within limits, and then gets the answer's end."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from runtime.server import lingering
from runtime.server.lingering import LINGER_BYTES, LINGER_SILENCE, LINGER_TIMEOUT, LingeringClose
from tests.runtime.camera.helpers import Clock

PARTS = 1000  # after which a body counts as endless


REQUEST = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}


async def answer_early(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": []})
    await send({"type": "http.response.body", "body": b"too large"})


def parts_read(part: bytes, clock: Clock, seconds: float) -> int:
    """The number of parts of an endless body, one in `seconds`, that are read after an early answer."""
    parts, sent = 0, list[Message]()

    async def receive() -> Message:
        nonlocal parts
        parts += 1
        assert parts < PARTS, "nothing ends the reading"
        clock.sleep(seconds)
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(LingeringClose(answer_early)(REQUEST, receive, send))
    assert [message.get("body") for message in sent] == [None, b"too large", b""]
    assert [message.get("more_body", False) for message in sent] == [False, True, False]
    return parts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lingering, "time", clock)
    return clock


def test_a_client_that_sends_on_is_read_up_to_a_size(clock: Clock) -> None:
    assert parts_read(bytes(LINGER_BYTES // 10), clock, 0.0) == 10


def test_a_client_that_sends_on_slowly_is_read_for_a_time(clock: Clock) -> None:
    seconds = LINGER_SILENCE / 2
    assert parts_read(b"a", clock, seconds) == LINGER_TIMEOUT / seconds


@pytest.mark.parametrize("last", [{"type": "http.request", "body": b"a"}, {"type": "http.disconnect"}])
def test_nothing_is_read_after_the_end_of_a_body_or_a_connection(last: Message) -> None:
    """Else each answer would wait for LINGER_SILENCE."""
    messages, sent = [last], list[Message]()

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async def answer_at_the_end(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answer_early(scope, receive, send)

    asyncio.run(LingeringClose(answer_at_the_end)(REQUEST, receive, send))
    assert [message.get("body") for message in sent] == [None, b"too large"]
