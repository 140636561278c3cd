"""Reads a request's body within limits of size and time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from runtime.server.errors import ClientDisconnected, RequestRejected

# A body may take 20 seconds plus 1 second per 16,000 bytes (the rule of Apache's mod_reqtimeout).
BODY_TIMEOUT = 20.0
MIN_BYTES_PER_SECOND = 16_000

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


async def read_body(
    receive: Receive,
    max_bytes: int,
    content_length: int | None = None,
    reserve: Callable[[int], None] = lambda byte_count: None,
) -> bytes:
    """A request's body. Reading stops when the body is too large or arrives too slowly.

    `reserve` is called with the length of each part before the part is stored. Raises RequestRejected (408,
    413), ClientDisconnected, and the exceptions of `reserve`.
    """
    too_large = RequestRejected(413, f"larger than {max_bytes / 1e6:g} MB, the limit of this service")
    if content_length is not None and content_length > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size, started = 0, time.monotonic()
    while True:
        seconds_left = started + BODY_TIMEOUT + size / MIN_BYTES_PER_SECOND - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, seconds_left))
        except asyncio.TimeoutError:
            raise RequestRejected(408, "the body arrived too slowly") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise too_large
        reserve(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
