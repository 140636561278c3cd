"""Reads the rest of a request's body after an early answer, so that clients get to see the answer.

Closing a connection with unread data resets it, and the reset can discard an answer that the client has not
read: a client that sends its whole body first would see a broken connection instead of the 413 (RFC 9112,
section 9.6).
"""

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_TIMEOUT = 20.0  # seconds
LINGER_SILENCE = 2.0  # seconds without data
LINGER_BYTES = 256_000_000

BODY_HEADERS = (b"content-length", b"transfer-encoding")


class LingeringClose:
    """Middleware: holds back the end of an early answer until the client has sent its body, within limits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_complete = scope["type"] != "http" or not any(name in BODY_HEADERS for name, _ in scope["headers"])

        async def receive_and_note() -> Message:
            nonlocal is_complete
            message = await receive()
            is_complete = not message.get("more_body", False)  # also after http.disconnect
            return message

        async def send_and_linger(message: Message) -> None:
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            if ends and not is_complete:
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app(scope, receive_and_note, send_and_linger)


async def _discard(receive: Receive) -> None:
    """Reads a body to its end, or until a limit is reached."""
    ends_at, size, more_body = time.monotonic() + LINGER_TIMEOUT, 0, True
    while more_body and size < LINGER_BYTES:
        seconds_left = min(LINGER_SILENCE, ends_at - time.monotonic())
        try:
            message = await asyncio.wait_for(receive(), max(0.0, seconds_left))
        except asyncio.TimeoutError:
            return
        size += len(message.get("body", b""))
        more_body = message.get("more_body", False)
