"""What the camera sees, for those who watch: the newest frame with its answer, and what was seen before.

Viewers ask for a frame newer than their last one and wait until there is one. So each gets the newest frame
at its own pace, nothing is queued for a slow one, and a frame is encoded once for all of them, or not at all.
"""

import asyncio
import io
from collections import deque
from contextlib import suppress
from threading import Thread
from typing import Any

from PIL import Image

from runtime.camera.camera import Camera
from runtime.camera.stream import FramePrediction, predict_stream, to_iso
from runtime.common.errors import UserError
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.server.auth import RequestRejected

MAX_VIEWERS = 32  # requests that wait for a frame
SIDE = 960  # pixels: enough for a page, and a quarter of the work of 1080p
JPEG_QUALITY = 80
HISTORY = 20


class LiveView:
    """A camera that is looked through all the time, on a thread of its own."""

    def __init__(self, camera: Camera, live: ReloadingClassifier, every: float) -> None:
        self.camera = camera
        self.sight: FramePrediction | None = None
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)  # answers that differed from the last
        self._live, self._every = live, every
        self._failed = ""
        self._waiting: set[asyncio.Future[None]] = set()
        self._encoded: tuple[int, asyncio.Future[bytes]] | None = None
        self._thread = Thread(target=self._look, name="view", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why there are no new frames, in one line; "" while there are."""
        return self._failed or self.camera.problem or ("the clip has ended" if self.camera.ended else "")

    def is_alive(self) -> bool:
        return self._thread.is_alive() or self.camera.ended

    def _look(self) -> None:
        try:
            for sight in predict_stream(self.camera, self._live, every=self._every):
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._put, sight)
        except UserError as error:
            self._failed = str(error)

    def _put(self, sight: FramePrediction) -> None:
        now = sight.prediction
        last = self.history[-1] if self.history else {}
        if (last.get("label"), last.get("known")) != (now.label, now.known):
            answer = {"label": now.label, "probability": now.probability, "known": now.known}
            self.history.append({"time": to_iso(sight.time), **answer})
        elif last["probability"] < now.probability:  # what was seen best stands for it
            last["probability"] = now.probability
        self.sight = sight
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def newer(self, after: int, timeout: float) -> FramePrediction | None:
        """The newest sight with a frame number other than `after`; None when none comes in `timeout` seconds.

        Raises Refused when as many wait as may.
        """
        if len(self._waiting) >= MAX_VIEWERS:
            raise RequestRejected(503, "as many watch as may", retry_after=5)
        if self.sight is None or self.sight.frame.number == after:
            waiter = self._loop.create_future()
            self._waiting.add(waiter)
            try:
                await asyncio.wait_for(waiter, timeout)
            except asyncio.TimeoutError:
                return None
            finally:
                self._waiting.discard(waiter)
        return self.sight

    async def jpeg(self, sight: FramePrediction) -> bytes:
        """Its frame, at most SIDE pixels wide or high."""
        if self._encoded is None or self._encoded[0] != sight.frame.number:
            work = self._loop.run_in_executor(None, _encode, sight)
            self._encoded = sight.frame.number, work
        return await asyncio.shield(self._encoded[1])


def _encode(sight: FramePrediction) -> bytes:
    image = Image.fromarray(sight.frame.pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
