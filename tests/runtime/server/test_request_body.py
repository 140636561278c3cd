"""The size and the time of a request's body."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from runtime.server import request_body
from runtime.server.errors import RequestRejected
from runtime.server.request_body import BODY_TIMEOUT, MIN_BYTES_PER_SECOND, BodyBuffer, fill_buffer
from tests.runtime.camera.helpers import Clock

SECONDS = 3 * BODY_TIMEOUT  # that a body takes


@pytest.mark.parametrize(("share_of_the_rate", "is_fast"), [(1.0, True), (0.5, False), (0.0, False)])
def test_a_body_may_take_long_only_at_the_least_rate(
    share_of_the_rate: float, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a client that sends a byte per second would keep its connection for days."""
    clock = Clock()
    monkeypatch.setattr(request_body, "time", clock)
    end = clock.now + SECONDS

    async def receive() -> Message:
        clock.sleep(1.0)
        part = bytes(max(1, int(share_of_the_rate * MIN_BYTES_PER_SECOND)))
        return {"type": "http.request", "body": part, "more_body": clock.now < end}

    buffer = BodyBuffer()
    if is_fast:
        asyncio.run(fill_buffer(buffer, receive, 10**8))
        assert buffer.size == SECONDS * MIN_BYTES_PER_SECOND
    else:
        with pytest.raises(RequestRejected, match="too slowly") as rejected:
            asyncio.run(fill_buffer(buffer, receive, 10**8))
        assert rejected.value.status == 408 and clock.now < end
