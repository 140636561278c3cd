"""Stand-ins for a capture backend, a camera and a model, and a real MJPEG server."""

from __future__ import annotations

import io
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.camera.camera import Camera
from runtime.camera.raw_frame import RawFrame

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FRAMES_PER_SECOND = 50  # of the MJPEG server

Send = Callable[[int], "bytes | None"]  # the number of a frame -> its JPEG; None closes the connection


def plain(color: tuple[int, int, int], size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    return np.full((*size, 3), color, np.uint8)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@dataclass
class Clock:
    """Time that passes only in sleep(); stands in for the module `time`."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class ScriptedBackend:
    """A capture backend whose frames the test puts by hand."""

    def __init__(self) -> None:
        self.events: Queue[RawFrame | Exception | None] = Queue()
        self.released = list[int]()
        self.decoded = list[int]()
        self.opened = 0
        self._put = 0

    def put(self, pixels: NDArray[np.uint8] | None = None) -> None:
        """Sends a frame; without pixels, a damaged one."""
        self._put += 1
        number = self._put

        def decode() -> NDArray[np.uint8]:
            self.decoded.append(number)
            if pixels is None:
                raise ValueError("damaged")
            return pixels

        self.events.put(RawFrame(time.monotonic(), decode, lambda: self.released.append(number)))

    def end(self) -> None:
        """Ends the clip."""
        self.events.put(None)

    def fail(self, error: Exception) -> None:
        self.events.put(error)

    def open(self, source: str, name: str) -> Iterator[RawFrame]:
        self.opened += 1
        while (event := self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    @contextmanager
    def camera(self, source: str = "0", **options: object) -> Iterator[Camera]:
        with Camera(source, **options) as opened:  # type: ignore[arg-type]
            yield opened
            self.end()  # or closing the camera would wait for its thread


class MjpegServer:
    """A network camera that sends MJPEG over HTTP."""

    def __init__(self, send: Send, port: int = 0, user: str = "") -> None:
        outer = self
        self.send, self.paths, self.stopped = send, list[str](), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                if user and self.headers.get("Authorization") != f"Basic {b64encode(user.encode()).decode()}":
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(10_000):
                    data = None if outer.stopped.is_set() else outer.send(number)
                    if data is None:
                        return
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + data + b"\r\n")
                    except OSError:
                        return
                    time.sleep(1 / FRAMES_PER_SECOND)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/video"

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def mjpeg_server(send: Send, user: str = "") -> Iterator[MjpegServer]:
    server = MjpegServer(send, user=user)
    try:
        yield server
    finally:
        server.stop()
