"""Camera: reads a capture source on a thread and keeps its newest frame.

A frame that is not taken before the next one arrives is dropped, never queued.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from math import inf
from threading import Condition, Event, Lock, Thread
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from runtime.camera.capture_backends import open_source, require_backend
from runtime.camera.raw_frame import FRAME_TIMEOUT, MAX_FRAME_PIXELS, RawFrame
from runtime.common.errors import CameraError, PictureError
from runtime.common.urls import hide_password
from runtime.preprocess.limits import check_aspect_ratio, check_shape

# Seconds between attempts to reconnect. For network cameras they double up to the maximum, because such
# cameras lock out clients that connect too often.
RETRY_DELAY = 1.0
MAX_RETRY_DELAY = 30.0

WAKE_UP_TIME = 0.005  # seconds that a waiting thread may need to wake up
JOIN_TIMEOUT = 0.3  # seconds that closing waits for the reader thread


@dataclass(frozen=True)
class Frame:
    """A decoded camera frame."""

    pixels: NDArray[np.uint8]  # [h, w, 3], RGB, upright
    # time.monotonic() seconds: the kernel's timestamp of a USB frame, the sensor's of a CSI frame, else the
    # time of arrival
    captured_at: float
    number: int  # from 1; dropped frames count too
    decode_ms: float = 0.0


@dataclass(frozen=True)
class _PendingFrame:
    """The newest frame, not decoded yet."""

    number: int
    arrived_at: float  # time.monotonic() seconds
    raw: RawFrame


class Camera:
    """A camera that is read on a thread inside a `with` block.

    `source` is a USB camera's number or device (`0`, `/dev/video2`), `picamera`, a stream's address, or a
    clip's path. With `retry`, the camera reconnects when it is missing or lost, and `on_message` gets a line
    when it is lost and when it is back. Raises CameraError if PyAV or picamera2 is missing.

    Attributes: `name` is the source without its password, `problem` is one line while the camera is lost,
    `ended` is true after the last frame of a clip or after the block, `frame_count` is the number of frames
    so far, and `first_frame` is the number of the first frame since the camera was lost.
    """

    def __init__(
        self, source: str, *, retry: bool = False, on_message: Callable[[str], None] = lambda line: None
    ) -> None:
        require_backend(source)
        self.source, self.name = source, hide_password(source)
        self.problem = ""
        self.ended = False
        self.frame_count = 0
        self.first_frame = 1
        self._retry, self._on_message = retry, on_message
        self._changed = Condition()  # guards the attributes above and below
        self._pending: _PendingFrame | None = None
        self._decoded: Frame | None = None
        self._arrival_times: deque[float] = deque(maxlen=30)
        self._last_activity = time.monotonic()  # of the reader thread
        self._error: CameraError | None = None
        self._rejection = ""  # why the latest frame was skipped
        self._unusable_since: float | None = None  # frames arrive, but no frame can be used
        self._is_unusable = False  # and that is reported
        self._decode_lock = Lock()  # decoders are not thread-safe
        self._closing = Event()
        self._reader = Thread(target=self._read, name="camera", daemon=True)

    def __enter__(self) -> "Camera":
        self._last_activity = time.monotonic()
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        self._reader.join(JOIN_TIMEOUT)  # a reader that hangs in connect() stays, as a daemon thread

    def newest(self, after: int = 0, timeout: float = 1.0, *, max_age: float = inf) -> Frame | None:
        """Returns the newest frame with a number above `after`, or None after `timeout` seconds without one.

        A frame that arrived more than `max_age` seconds ago is skipped: the call waits for the next one.
        Raises CameraError if the camera is lost, unless it was created with `retry`.
        """
        deadline = time.monotonic() + timeout
        while (found := self._wait_for_frame(after, deadline, max_age)) is not None:
            if isinstance(found, Frame):
                return found
            if (frame := self._decode(found)) is not None:
                return frame
        return None

    @property
    def frame_interval(self) -> float:
        """Mean seconds between the arrivals of the latest frames; 0 before the second frame."""
        with self._changed:
            times = self._arrival_times
            return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0

    def _wait_for_frame(self, after: int, deadline: float, max_age: float) -> Frame | _PendingFrame | None:
        """Returns a decoded frame, or takes the pending one; None at the deadline or when the camera ends."""
        with self._changed:
            while (found := self._find_frame(after, max_age)) is None:
                if self._error:
                    raise self._error
                seconds_left = deadline - time.monotonic()
                if self.ended and self._decoded is None and self._rejection:
                    raise self._unusable_error()
                if self.ended or self._closing.is_set() or seconds_left <= 0:
                    return None
                self._changed.wait(seconds_left)
                self._check_activity()
            if isinstance(found, _PendingFrame):
                self._pending = None
            return found

    def _find_frame(self, after: int, max_age: float) -> Frame | _PendingFrame | None:
        if self._pending is None:
            decoded = self._decoded
            return decoded if decoded is not None and decoded.number > after else None
        # No fresher frame follows the last frame of a clip.
        limit = max(self.frame_interval, 0.1) if self.ended else max(max_age, WAKE_UP_TIME)
        return self._pending if time.monotonic() - self._pending.arrived_at <= limit else None

    def _decode(self, pending: _PendingFrame) -> Frame | None:
        """Returns the decoded frame; None if it is damaged, or of a size that no picture has."""
        raw = pending.raw
        with self._decode_lock:
            started = time.perf_counter()
            try:
                pixels = raw.decode()
                check_frame_size(pixels)
            except Exception as error:  # a damaged frame: each library raises its own exception
                self._reject(str(error) if isinstance(error, PictureError) else "is damaged")
                return None
            finally:
                raw.release()
            self._accept()
            frame = Frame(pixels, raw.captured_at, pending.number, 1000 * (time.perf_counter() - started))
            with self._changed:
                if self._decoded is None or self._decoded.number < frame.number:
                    self._decoded = frame
        return frame

    def _reject(self, reason: str) -> None:
        """Skips a frame. Reports a camera that has sent no other frames for FRAME_TIMEOUT."""
        now = time.monotonic()
        with self._changed:
            self._rejection = reason
            if self._unusable_since is None:
                self._unusable_since = now
            if self._is_unusable or now - self._unusable_since < FRAME_TIMEOUT:
                return
        self._lose(self._unusable_error(), is_unusable=True)

    def _unusable_error(self) -> CameraError:
        return CameraError(f"{self.name}: its picture {self._rejection}: check its settings")

    def _accept(self) -> None:
        with self._changed:
            was_unusable, self._is_unusable, self._unusable_since = self._is_unusable, False, None
            if was_unusable:
                self.problem = ""
        if was_unusable:
            self._on_message(f"{self.name}: is back")

    def _check_activity(self) -> None:
        """Reports a reader thread that hangs: not every driver honours the timeout of its library."""
        silence = time.monotonic() - self._last_activity
        if silence > 2 * FRAME_TIMEOUT and not self.problem:
            self._lose(CameraError(f"{self.name}: has been silent for {silence:.0f} s: check its cable"))

    def _read(self) -> None:
        """Reads frame after frame, and reconnects with `retry`; the reader thread's function."""
        delay = RETRY_DELAY
        while not self._closing.is_set():
            self._last_activity = time.monotonic()
            try:
                with closing(open_source(self.source, self.name)) as raw_frames:
                    for raw in raw_frames:
                        self._put(raw)
                        delay = RETRY_DELAY
                        if self._closing.is_set():
                            return
                self._end()
                return
            except CameraError as error:
                self._lose(error)
            if not self._retry:
                return
            self._closing.wait(delay)
            if "://" in self.source:
                delay = min(2 * delay, MAX_RETRY_DELAY)

    def _put(self, raw: RawFrame) -> None:
        with self._changed:
            stale, now = self._pending, time.monotonic()
            self.frame_count += 1
            self._pending = _PendingFrame(self.frame_count, now, raw)
            self._arrival_times.append(now)
            self._last_activity = now
            was_lost = bool(self.problem) and not self._is_unusable
            if was_lost:
                self.problem = ""
            self._changed.notify_all()
        if stale is not None:
            stale.raw.release()
        if was_lost:
            self._on_message(f"{self.name}: is back")

    def _end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _lose(self, error: CameraError, *, is_unusable: bool = False) -> None:
        with self._changed:
            self._is_unusable = is_unusable
            if not is_unusable:
                self._unusable_since = None  # a first frame after it may be damaged
            reported, self.problem = self.problem, str(error)
            self.first_frame = self.frame_count + 1
            if self._pending is not None:
                self._pending.raw.release()
            self._pending = self._decoded = None
            self._arrival_times.clear()
            if not self._retry:
                self._error = error
            self._changed.notify_all()
        if self._retry and reported != self.problem:
            self._on_message(f"{self.problem} (retrying until it is back)")


def check_frame_size(pixels: NDArray[np.uint8]) -> None:
    """Raises PictureError for a frame [h, w, 3] of a size that the model cannot use."""
    height, width = pixels.shape[:2]
    if check_shape(width, height) > MAX_FRAME_PIXELS:
        raise PictureError(
            f"is {width} x {height} pixels, and a frame may have {MAX_FRAME_PIXELS // 10**6} million"
        )
    check_aspect_ratio(width, height)
