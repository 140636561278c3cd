"""predict_stream: classifies the newest frame of a camera again and again."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np
from numpy.typing import NDArray

from runtime.camera.camera import Camera, Frame
from runtime.camera.crop import Crop
from runtime.camera.flags import DEFAULT_CONFIRM
from runtime.camera.raw_frame import FRAME_TIMEOUT
from runtime.camera.smoothing import DEFAULT_SMOOTHING, ChangeDetector, MovingAverage, Smoothing
from runtime.common.errors import CameraError, EngineError, PictureError
from runtime.inference.classifier import Classifier
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction, json_line
from runtime.preprocess.picture import read_picture

FPS_WINDOW = 10  # answers
WAIT = 1.0  # seconds for a frame, until the camera is checked
GAP = 3  # frame intervals without a frame, after which the scene may have changed
NO_MEMORY = EngineError("not enough memory for a frame")
WAITING = "waiting for the first frame"


@dataclass(frozen=True)
class FramePrediction:
    """The prediction for a camera frame."""

    frame: Frame
    prediction: Prediction  # of the smoothed probabilities
    unsmoothed: Prediction  # of this frame alone
    age_ms: float  # from `frame.captured_at` to the answer
    fps: float  # answers per second over the last FPS_WINDOW answers
    dropped: int  # frames so far that arrived and were not classified
    is_change: bool = False  # whether the answer changes with this frame
    crop: Crop | None = None  # the region that was classified; None: the whole frame
    features: NDArray[np.float32] | None = None  # [D], of this frame; None when the model has none

    def picture(self) -> NDArray[np.uint8]:
        """Returns the classified pixels, uint8 [h, w, 3], RGB: the frame or a region of it."""
        return self.crop.apply(self.frame.pixels) if self.crop else self.frame.pixels

    @property
    def time(self) -> datetime:
        """When the frame was captured, UTC."""
        return datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - self.frame.captured_at)

    def to_json(self) -> str:
        """Returns the line that `python -m runtime.classify --camera --json` prints."""
        return json_line(
            self.prediction,
            frame=self.frame.number,
            age_ms=self.age_ms,
            fps=self.fps,
            dropped=self.dropped,
            time=to_iso(self.time),
        )


def to_iso(moment: datetime) -> str:
    """Returns a UTC time in ISO 8601 with milliseconds, such as "2025-01-31T12:00:00.000Z"."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def raise_error(error: EngineError) -> None:
    raise error


def predict_stream(
    camera: Camera,
    reloader: ReloadingClassifier,
    *,
    every: float = 0.0,
    smoothing: Smoothing = DEFAULT_SMOOTHING,
    confirm: int = DEFAULT_CONFIRM,
    crop: Callable[[], Crop | None] = lambda: None,
    on_refused: Callable[[str], None] = lambda problem: None,
    on_engine_error: Callable[[EngineError], None] = raise_error,
) -> Iterator[FramePrediction]:
    """Yields the prediction for the newest frame, at most one per `every` seconds, until a clip ends.

    A new answer is a change after `confirm` frames that agree. `crop` returns the region of a frame. While a
    camera with `retry` is lost, the stream waits; the next answer counts at once. `on_refused` gets one line
    FRAME_TIMEOUT after the last usable frame, and "" at the next one. Raises CameraError; EngineError unless
    `on_engine_error` is set.
    """
    schedule, average, rate = _Schedule(every), MovingAverage(smoothing), _RateMeter()
    changes, refusals = ChangeDetector(confirm), _Refusals(camera.name, on_refused)
    prepare_ms, last, answered, dropped, waited = 0.0, 0, 0, 0, 0.0
    while True:
        schedule.wait()
        frame = camera.newest(last, timeout=WAIT, max_age=max(0.0, camera.frame_interval - prepare_ms / 1000))
        if frame is None:
            if camera.ended:
                return refusals.end()
            waited += WAIT
            if camera.problem or waited >= GAP * camera.frame_interval:
                average.reset()
                rate.reset()
            continue
        schedule.start()
        classifier, region = reloader.current(), crop()
        # Another model has other classes, another region shows another picture.
        average.reset_if_changed((*_model_identity(classifier), region))
        try:
            model_input = _prepare_newest(camera, frame, classifier.model.contract.input_size, region)
            output = classifier.infer(model_input.pixels)
        except (PictureError, EngineError, MemoryError) as error:  # the next frame may be better
            _report_error(error, refusals, on_engine_error)
            dropped, last = dropped + frame.number - last, frame.number
            continue
        refusals.clear()
        frame, prepare_ms, waited = model_input.frame, model_input.ms, 0.0
        dropped, last = dropped + frame.number - last - 1, frame.number
        is_back, answered, ready = answered < camera.first_frame <= last, last, time.monotonic()
        prediction = classifier.to_prediction(camera.name, average.update(output, ready), prepare_ms)
        unsmoothed = classifier.to_prediction(camera.name, output, prepare_ms)
        yield FramePrediction(
            frame=frame,
            prediction=prediction,
            unsmoothed=unsmoothed,
            age_ms=round(1000 * (ready - frame.captured_at), 1),
            fps=rate.update(ready),
            dropped=dropped,
            is_change=changes.is_change(prediction, unsmoothed, at_once=is_back),
            crop=region,
            features=output.features,
        )


def describe_wait(camera: Camera, answered: int) -> str:
    """Returns WAITING if the camera was lost after the last frame with an answer, else "".

    `answered` is the number of that frame; 0 before the first answer.
    """
    return WAITING if answered < camera.first_frame else ""


def _model_identity(classifier: Classifier) -> tuple[object, ...]:
    """Returns the parts of a classifier that its answers depend on, but not its file and engine."""
    return classifier.model.contract.model_id, classifier.correction, classifier.learned


def describe_refusal(name: str, problem: str) -> str:
    """Returns the message about a camera for a `problem` of `on_refused`; "" is the end of a problem."""
    return problem or f"{name}: its frames can be classified again"


class _Refusals:
    """Reports that frames arrive but cannot be classified, such as for the shape of their region."""

    def __init__(self, name: str, on_refused: Callable[[str], None]) -> None:
        self._name, self._on_refused = name, on_refused
        self._problem, self._since, self._is_reported = "", 0.0, False

    def add(self, error: PictureError) -> None:
        now = time.monotonic()
        if not self._problem:
            self._since = now
        self._problem = (
            f"{self._name}: the picture to classify {error}: check --crop and the settings of the camera"
        )
        if now - self._since >= FRAME_TIMEOUT and not self._is_reported:
            self._is_reported = True
            self._on_refused(self._problem)

    def clear(self) -> None:
        if self._is_reported:
            self._on_refused("")
        self._problem, self._is_reported = "", False

    def end(self) -> None:
        """Raises CameraError if the last frames of a clip were refused, and that is not reported yet."""
        if self._problem and not self._is_reported:
            raise CameraError(self._problem)


def _report_error(
    error: PictureError | EngineError | MemoryError,
    refusals: _Refusals,
    on_engine_error: Callable[[EngineError], None],
) -> None:
    if isinstance(error, PictureError):
        refusals.add(error)
    else:
        on_engine_error(NO_MEMORY if isinstance(error, MemoryError) else error)


class _Schedule:
    """Starts at most one answer per `every` seconds."""

    def __init__(self, every: float) -> None:
        self._every, self._due = every, time.monotonic()

    def wait(self) -> None:
        """Waits until the next answer is due."""
        time.sleep(max(0.0, self._due - time.monotonic()))

    def start(self) -> None:
        """Marks the start of an answer."""
        now = time.monotonic()
        self._due += self._every
        if self._due < now:  # late: skip the missed answers
            self._due = now + self._every


class _RateMeter:
    """Measures answers per second."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=FPS_WINDOW)

    def reset(self) -> None:
        self._times.clear()

    def update(self, now: float) -> float:
        """Returns answers per second, including one at `now` (seconds); 0 for the first."""
        self._times.append(now)
        span = now - self._times[0]
        return round((len(self._times) - 1) / span, 1) if span else 0.0


@dataclass(frozen=True)
class _ModelInput:
    """A frame as the model takes it."""

    frame: Frame
    pixels: NDArray[np.uint8]  # [H, W, 3], RGB
    ms: float  # to decode and resize the frame


def _prepare_newest(camera: Camera, frame: Frame, size: tuple[int, int], crop: Crop | None) -> _ModelInput:
    """Prepares `frame`; if a newer frame arrives in the meantime, prepares the one after it instead.

    The engine then starts on a frame that is at most one frame interval old, unless preparing a frame takes
    longer than that.
    """
    prepared = _prepare(frame, size, crop)
    interval = camera.frame_interval
    if camera.frame_count > frame.number and prepared.ms < 1000 * interval:
        newer = camera.newest(frame.number, timeout=interval, max_age=0)
        if newer is not None:
            return _prepare(newer, size, crop)
    return prepared


def _prepare(frame: Frame, size: tuple[int, int], crop: Crop | None) -> _ModelInput:
    started = time.monotonic()
    pixels = read_picture(crop.apply(frame.pixels) if crop else frame.pixels, size)
    return _ModelInput(frame, pixels, frame.decode_ms + 1000 * (time.monotonic() - started))
