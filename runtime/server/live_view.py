"""The camera's newest frame with its prediction, for any number of viewers, and a history of predictions.

A viewer asks for a frame newer than its last one and waits for it. So each viewer gets the newest frame at
its own pace, nothing queues up for a slow viewer, and a frame is encoded at most once for all viewers.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from runtime.camera.camera import Camera
from runtime.camera.flags import DEFAULT_CONFIRM
from runtime.camera.stream import (
    NO_MEMORY,
    FramePrediction,
    describe_refusal,
    describe_wait,
    predict_stream,
    to_iso,
)
from runtime.common.errors import EngineError, UserError
from runtime.common.terminal import print_error, print_info
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.preprocess.preview import encode_preview
from runtime.server.crop_setting import CropSetting
from runtime.server.errors import RequestRejected

MAX_VIEWERS = 32  # requests that wait for a frame at the same time
HISTORY_LENGTH = 20
ENGINE_RETRY = 1.0  # seconds after an engine error until the next frame


class LiveView:
    """Classifies a camera's frames continuously in a thread."""

    def __init__(
        self,
        camera: Camera,
        model: ReloadingClassifier,
        every: float,
        crop: CropSetting,
        confirm: int = DEFAULT_CONFIRM,
        on_frame: Callable[[FramePrediction], None] = lambda frame_prediction: None,
    ) -> None:
        self.camera, self.crop = camera, crop
        self.latest: FramePrediction | None = None
        # One entry per change of the answer.
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY_LENGTH)
        self._model = model
        self._every = every  # seconds between predictions
        self._confirm = confirm  # agreeing frames after which a new answer counts
        self._on_frame = on_frame  # called in the thread
        self._error = self._refused = ""
        self._answered = 0  # the number of the last frame with an answer
        self._waiters: dict[asyncio.Future[None], str] = {}  # with the client's address, oldest first
        self._encoded: dict[bool, tuple[int, asyncio.Future[bytes]]] = {}  # by whole frame
        self._thread = Thread(target=self._classify_frames, name="live-view", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def problem(self) -> str:
        """One line on why no new frames arrive; "" while they arrive."""
        return (
            self._error
            or self.camera.problem
            or self._refused
            or ("the clip has ended" if self.camera.ended else "")
        )

    @property
    def answer_problem(self) -> str:
        """One line on why the last answer is not current; "" if it is."""
        return self.problem or describe_wait(self.camera, self._answered)

    def is_alive(self) -> bool:
        return self._thread.is_alive() or self.camera.ended

    async def newer_than(
        self, frame_number: int, timeout: float, address: str = ""
    ) -> FramePrediction | None:
        """The newest frame if it is not `frame_number`, else the next one; None after `timeout` seconds.

        Raises RequestRejected (503) if MAX_VIEWERS requests wait, and no client has more of them than the
        client at `address`.
        """
        if self.latest is None or self.latest.frame.number == frame_number:
            self._make_room(address)
            waiter = self._loop.create_future()
            self._waiters[waiter] = address
            try:
                await asyncio.wait_for(waiter, timeout)
            except asyncio.TimeoutError:
                return None
            finally:
                self._waiters.pop(waiter, None)
        return self.latest

    def _make_room(self, address: str) -> None:
        """Ends the oldest request of the client that has most, unless that is the client at `address`."""
        if len(self._waiters) < MAX_VIEWERS:
            return
        error = RequestRejected(
            503, f"{MAX_VIEWERS} viewers wait for a frame already: retry in 5 s", retry_after=5
        )
        count = Counter(self._waiters.values())
        busiest = max(count, key=count.__getitem__)
        if count[busiest] <= count[address] + 1:
            raise error
        oldest = next(waiter for waiter, client in self._waiters.items() if client == busiest)
        del self._waiters[oldest]
        if not oldest.done():
            oldest.set_exception(error)

    async def jpeg(self, frame_prediction: FramePrediction, *, whole: bool = False) -> bytes:
        """The classified region, or the `whole` frame, as a small JPEG."""
        number, encoding = self._encoded.get(whole, (0, None))
        if encoding is None or number != frame_prediction.frame.number:
            pixels = frame_prediction.frame.pixels if whole else frame_prediction.picture()
            encoding = self._loop.run_in_executor(None, encode_preview, pixels)
            self._encoded[whole] = frame_prediction.frame.number, encoding
        return await asyncio.shield(encoding)

    def _classify_frames(self) -> None:
        try:
            stream = predict_stream(
                self.camera,
                self._model,
                every=self._every,
                confirm=self._confirm,
                crop=lambda: self.crop.current,
                on_refused=self._report_refused,
                on_engine_error=self._wait_after_error,
            )
            for frame_prediction in stream:
                self._error, self._answered = "", frame_prediction.frame.number
                with suppress(RuntimeError):  # the event loop is closed
                    self._loop.call_soon_threadsafe(self._publish, frame_prediction)
                self._use_frame(frame_prediction)
        except UserError as error:
            self._error = str(error)

    def _use_frame(self, frame_prediction: FramePrediction) -> None:
        try:
            self._on_frame(frame_prediction)
        except MemoryError:  # for the picture that is saved or sent
            self._wait_after_error(NO_MEMORY)

    def _wait_after_error(self, error: EngineError) -> None:
        """Reports an error, such as too little memory, and waits: a later frame or another model may work."""
        if self._error != str(error):
            print_error(f"{self.camera.name}: {error}")
        self._error = str(error)
        time.sleep(ENGINE_RETRY)

    def _report_refused(self, problem: str) -> None:
        self._refused = problem
        print_info(describe_refusal(self.camera.name, problem))

    def _publish(self, frame_prediction: FramePrediction) -> None:
        prediction = frame_prediction.prediction
        last = self.history[-1] if self.history else {}
        if frame_prediction.is_change:
            self.history.append(
                {
                    "time": to_iso(frame_prediction.time),
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "known": prediction.known,
                }
            )
        elif (last["label"], last["known"]) == (prediction.label, prediction.known):
            # An entry keeps its highest probability.
            last["probability"] = max(last["probability"], prediction.probability)
        self.latest = frame_prediction
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
