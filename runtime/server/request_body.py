"""Reads a request's body within limits of size and time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from runtime.server.errors import ClientDisconnected, RequestRejected

# A client may fall 20 seconds behind this rate: every body that stalls ends after 20 seconds.
BODY_TIMEOUT = 20.0
MIN_BYTES_PER_SECOND = 64_000

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class BodyBuffer:
    """The received part of one body, and the time that its client is behind MIN_BYTES_PER_SECOND."""

    def __init__(self) -> None:
        self.size = 0  # bytes
        self.revoked: RequestRejected | None = None  # the error for the client; the body is gone
        # One block, which the system gets back as a whole: a list of parts would leave gaps in the heap.
        self._received = bytearray()
        self._paid_until = time.monotonic()

    def add(self, part: bytes) -> None:
        self._received += part
        self.size += len(part)
        paid_until = self._paid_until + len(part) / MIN_BYTES_PER_SECOND
        self._paid_until = min(paid_until, time.monotonic())  # a fast start does not pay for a later stall

    def seconds_behind(self) -> float:
        return time.monotonic() - self._paid_until

    def revoke(self, rejection: RequestRejected) -> None:
        """Frees the memory now. The task that reads the body ends with `rejection` at its next part."""
        self.revoked = rejection
        self.clear()

    def clear(self) -> None:
        self.size = 0
        self._received.clear()

    def take(self) -> bytes:
        """The body. The buffer keeps its size, but no longer the bytes."""
        body = bytes(self._received)
        self._received.clear()
        return body


async def fill_buffer(
    buffer: BodyBuffer,
    receive: Receive,
    max_bytes: int,
    content_length: int | None = None,
    reserve: Callable[[int], None] = lambda byte_count: None,
) -> None:
    """Receives a body. Reading stops when the body is too large or arrives too slowly.

    `reserve` is called with the length of each part before the part is stored. Raises RequestRejected (408,
    413, 503), ClientDisconnected, and the exceptions of `reserve`.
    """
    if content_length is not None and content_length > max_bytes:
        raise _too_large_error(max_bytes)
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, BODY_TIMEOUT - buffer.seconds_behind()))
        except asyncio.TimeoutError:
            raise buffer.revoked or RequestRejected(408, "the body arrived too slowly") from None
        except MemoryError:
            raise no_memory_error() from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        if buffer.revoked is not None:
            raise buffer.revoked
        part: bytes = message.get("body", b"")
        if buffer.size + len(part) > max_bytes:
            raise _too_large_error(max_bytes)
        reserve(len(part))
        try:
            buffer.add(part)
        except MemoryError:
            raise no_memory_error() from None
        if not message.get("more_body", False):
            return


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """A small body, which no other limit counts.

    Raises RequestRejected (408, 413, 503) and ClientDisconnected.
    """
    buffer = BodyBuffer()
    await fill_buffer(buffer, receive, max_bytes)
    return buffer.take()


def _too_large_error(max_bytes: int) -> RequestRejected:
    if max_bytes < 100_000:
        return RequestRejected(413, f"larger than {max_bytes} bytes, the limit of this address")
    return RequestRejected(413, f"larger than {max_bytes / 1e6:g} MB, the limit of this service")


def no_memory_error() -> RequestRejected:
    return RequestRejected(503, "not enough memory for this body: retry in 1 s", retry_after=1)
