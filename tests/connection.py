"""One connection of the service without a socket: bytes go in, and what the protocol wrote comes out."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from runtime.server.connection_limits import BoundedHttpProtocol
from runtime.server.errors import ClientDisconnected, RequestRejected
from runtime.server.request_body import read_body

MAX_BODY = 10_000  # bytes


class FakeSocket:
    """The options that are set, and the addresses."""

    def __init__(self) -> None:
        self.options: list[tuple[int, ...]] = []

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.2", 80

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 5


class FakeTransport(asyncio.Transport):
    """Records what is written, and whether the connection is closed or no longer read."""

    def __init__(self) -> None:
        self.socket = FakeSocket()
        super().__init__({"socket": self.socket})
        self.written = b""
        self.is_read = True
        self._closing = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


async def answer_length(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers a request with the length of its body."""
    try:
        text = str(len(await read_body(receive, MAX_BODY))).encode()
    except RequestRejected as rejection:
        text = str(rejection.status).encode()
    except ClientDisconnected:
        return
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def connect(app: Any = answer_length) -> tuple[BoundedHttpProtocol, FakeTransport]:
    """A new connection to `app`, of the running event loop."""
    config = Config(app, http=BoundedHttpProtocol, ws="none", lifespan="off", log_config=None)
    protocol = BoundedHttpProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    transport = FakeTransport()
    protocol.connection_made(transport)
    return protocol, transport


async def let_app_run() -> None:
    """Gives the tasks of the application time for all that needs no further bytes."""
    loop: Any = asyncio.get_running_loop()
    for _ in range(40):
        if not loop._ready:  # nothing else can run: the fuzzer gets ten times as many inputs per second
            return
        await asyncio.sleep(0)
