"""A camera's newest frame, and what a model sees on it: a USB or CSI camera, a network stream, or a clip.

One thread reads the camera and keeps its newest frame alone: frames that nobody took in time are dropped,
never queued. `sights` is the loop that classifies them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from math import exp, inf
from threading import Condition, Event, Lock, Thread
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from runtime.camera.capture_backends import TIMEOUT, RawFrame, open_source, require_backend
from runtime.common.errors import CameraError, PictureError
from runtime.common.urls import hide_password
from runtime.inference.classifier import Classifier
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import ModelOutput, Prediction, json_line
from runtime.preprocess.picture import read_picture

# With `retry`, seconds between tries. Those of an address double: cameras lock out who knocks too often.
RETRY_AFTER = 1.0
RETRY_AFTER_AT_MOST = 30.0

SMOOTH_SECONDS = 0.5


@dataclass(frozen=True)
class Frame:
    """One picture of a camera."""

    pixels: NDArray[np.uint8]  # [h, w, 3], RGB, upright
    taken: float  # time.monotonic() seconds: the kernel's stamp of a V4L2 or CSI frame, else its arrival here
    number: int  # from 1 on, counting those that were dropped
    decode_ms: float = 0.0  # what it took to make the pixels


@dataclass(frozen=True)
class FramePrediction:
    """What a model saw on a frame."""

    frame: Frame
    prediction: Prediction  # of the smoothed probabilities
    age_ms: float  # from `frame.taken` to when the answer was there
    fps: float  # answers a second, over the last ten
    dropped: int  # frames that came and were not looked at, so far

    @property
    def time(self) -> datetime:
        """When the frame was taken, UTC."""
        return datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - self.frame.taken)

    def to_json(self) -> str:
        """The line that `python -m runtime.classify --camera --json` prints of it."""
        return json_line(
            self.prediction,
            frame=self.frame.number,
            age_ms=self.age_ms,
            fps=self.fps,
            dropped=self.dropped,
            time=to_iso(self.time),
        )


def to_iso(moment: datetime) -> str:
    """ISO 8601 to the millisecond, of a time in UTC."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def over_seconds(seconds: float) -> Callable[[float], float]:
    """An exponential average of this time constant: a new answer's weight, by the seconds since the last."""
    return lambda since: 1 - exp(-since / seconds) if seconds > 0 else 1.0


SMOOTH = over_seconds(SMOOTH_SECONDS)


def over_frames(frames: float) -> Callable[[float], float]:
    """An exponential average that lags as much as the mean of so many frames: a new answer's weight."""
    return lambda since: 2 / (max(1.0, frames) + 1)


def predict_stream(
    camera: "Camera",
    live: ReloadingClassifier,
    *,
    every: float = 0.0,
    smooth: Callable[[float], float] = SMOOTH,
) -> Iterator[FramePrediction]:
    """Classifies the newest frame, again and again, at most once in `every` seconds, until a clip ends.

    The engine starts on a frame that is at most one frame interval old, as long as making pixels of it takes
    no longer: one overtaken meanwhile is given up for the next that comes, once. `smooth` gives the weight of
    a new answer, 0-1. While a camera with `retry` is away, it waits. Raises CameraError, EngineError.
    """
    last, dropped, due = 0, 0, time.monotonic()
    preparing = 0.0  # the seconds that it last took to make the model's pixels of a frame
    answered: deque[float] = deque(maxlen=10)
    classifier: Classifier | None = None
    average: ModelOutput | None = None
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        frame = camera.newest(last, timeout=1.0, within=max(0.0, camera.interval - preparing))
        if frame is None:
            if camera.ended:
                return
            average = None  # after a gap, what was seen before it is of no weight
            answered.clear()
            continue
        began = time.monotonic()
        due += every
        if due < began:  # late, or the first: no second answer to make up for it
            due = began + every
        if (now := live.now()) is not classifier:  # another model's probabilities are of other classes
            classifier, average = now, None
        size = classifier.model.contract.input_size
        pixels, preparing = _prepare(camera, frame, size)
        if camera.count > frame.number and preparing < camera.interval:
            fresher = camera.newest(frame.number, timeout=camera.interval, within=0)
            if fresher is not None:
                frame = fresher
                pixels, preparing = _prepare(camera, frame, size)
        dropped += frame.number - last - 1
        last = frame.number
        answer = classifier.infer(pixels)
        ready = time.monotonic()
        average = _mean(average, answer, smooth(ready - answered[-1]) if answered else 1.0)
        answered.append(ready)
        span = ready - answered[0]
        yield FramePrediction(
            frame=frame,
            prediction=classifier.to_prediction(camera.name, average, 1000 * preparing),
            age_ms=round(1000 * (ready - frame.taken), 1),
            fps=round((len(answered) - 1) / span, 1) if span else 0.0,
            dropped=dropped,
        )


def _prepare(camera: "Camera", frame: Frame, size: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
    """The model's pixels, and the seconds that they took from the camera's bytes on."""
    began = time.monotonic()
    try:
        pixels = read_picture(frame.pixels, size)
    except PictureError as error:
        raise CameraError(f"{camera.name}: its picture {error}") from None
    return pixels, frame.decode_ms / 1000 + time.monotonic() - began


def _mean(old: ModelOutput | None, new: ModelOutput, weight: float) -> ModelOutput:
    if old is None:
        return new
    known = None
    if new.known is not None and old.known is not None:
        known = old.known + weight * (new.known - old.known)
    probabilities = old.probabilities + np.float32(weight) * (new.probabilities - old.probabilities)
    return ModelOutput(probabilities, known, new.ms)


class Camera:
    """`source` is a number or device (`0`, `/dev/video2`), `picamera`, a stream's address, or a clip's path.

    A context manager: inside, a thread reads the camera. `retry` waits for a camera that is away or goes
    away, and `say` gets a line when it does and when it is back. `name` is the source without its password,
    `problem` is one line while the camera is away, `ended` is true after a clip's last frame, `count` is how
    many frames have come. Raises CameraError when PyAV or picamera2 is missing.
    """

    def __init__(
        self, source: str, *, retry: bool = False, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.source, self.name = source, hide_password(source)
        self.problem = ""
        self.ended = False
        self._retry, self._say = retry, say
        self._changed = Condition()
        self._shot: tuple[int, float, RawFrame] | None = (
            None  # number, when it came; the newest, not yet taken
        )
        self._frame: Frame | None = None  # the newest that was
        self._developing = Lock()
        self._arrivals: deque[float] = deque(maxlen=30)
        self.count = 0
        self._error: CameraError | None = None
        self._closing = Event()
        self._heard = time.monotonic()  # the last sign of life of the reader
        require_backend(source)
        self._reader = Thread(target=self._read, name="camera", daemon=True)

    def __enter__(self) -> "Camera":
        self._heard = time.monotonic()
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        # One that hangs in connect() is left behind: it is a daemon, and holds up nobody.
        self._reader.join(0.3)

    def newest(self, after: int = 0, timeout: float = 1.0, *, within: float = inf) -> Frame | None:
        """The newest frame with a number over `after`, waited for up to `timeout` seconds; None without one.

        One that came more than `within` seconds ago is passed over for the next. Raises CameraError, unless
        with `retry`.
        """
        until = time.monotonic() + timeout
        while True:
            with self._changed:
                while (found := self._find(after, within)) is None:
                    if self._error:
                        raise self._error
                    left = until - time.monotonic()
                    if self.ended or self._closing.is_set() or left <= 0:
                        return None
                    self._changed.wait(left)
                    self._check_silence()
                if isinstance(found, Frame):
                    return found
                number, _, shot = found
                self._shot = None
            with self._developing:
                try:
                    began = time.perf_counter()
                    pixels = shot.pixels()
                    frame = Frame(pixels, shot.taken, number, 1000 * (time.perf_counter() - began))
                except Exception:  # USB cameras do send damaged ones, and each library tells in its own way
                    continue
                finally:
                    shot.drop()
                with self._changed:
                    if self._frame is None or self._frame.number < number:
                        self._frame = frame
            return frame

    def _find(self, after: int, within: float) -> Frame | tuple[int, float, RawFrame] | None:
        if self._shot is not None:
            lain = time.monotonic() - self._shot[1]
            # A thread takes a moment to wake. After a clip's last frame there is no fresher one to wait for.
            limit = max(self.interval, 0.1) if self.ended else max(within, 0.005)
            return self._shot if lain <= limit else None
        return self._frame if self._frame is not None and self._frame.number > after else None

    @property
    def interval(self) -> float:
        """Seconds from frame to frame, as they come; 0 before there are two."""
        with self._changed:
            came = self._arrivals
            return (came[-1] - came[0]) / (len(came) - 1) if len(came) > 1 else 0.0

    def _check_silence(self) -> None:
        """The libraries' own time limits do not reach into every driver."""
        silent = time.monotonic() - self._heard
        if silent > 2 * TIMEOUT and not self.problem:
            self._fail(CameraError(f"{self.name}: has been silent for {silent:.0f} s: look at its cable"))

    def _read(self) -> None:
        wait = RETRY_AFTER
        while not self._closing.is_set():
            self._heard = time.monotonic()
            try:
                with closing(open_source(self.source, self.name)) as shots:
                    for shot in shots:
                        self._put(shot)
                        wait = RETRY_AFTER
                        if self._closing.is_set():
                            break
                    else:
                        self._end()
                        return
            except CameraError as error:
                self._fail(error)
            if not self._retry:
                return
            self._closing.wait(wait)
            wait = min(2 * wait, RETRY_AFTER_AT_MOST) if "://" in self.source else wait

    def _put(self, shot: RawFrame) -> None:
        with self._changed:
            old, now = self._shot, time.monotonic()
            self.count += 1
            self._shot = self.count, now, shot
            self._arrivals.append(now)
            self._heard = now
            back, self.problem = bool(self.problem), ""
            self._changed.notify_all()
        if old is not None:
            old[2].drop()
        if back:
            self._say(f"{self.name}: is back")

    def _end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _fail(self, error: CameraError) -> None:
        with self._changed:
            told, self.problem = self.problem, str(error)
            if self._shot is not None:
                self._shot[2].drop()
            self._shot = self._frame = None  # of how it was before
            self._arrivals.clear()
            if not self._retry:
                self._error = error
            self._changed.notify_all()
        if self._retry and told != self.problem:
            self._say(f"{self.problem} (trying again until it is back)")
