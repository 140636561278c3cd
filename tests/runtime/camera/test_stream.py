"""predict_stream, with a clock that the test moves, a scripted camera, and a model that names colors."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.camera import stream
from runtime.camera.camera import Frame
from runtime.camera.raw_frame import FRAME_TIMEOUT
from runtime.camera.smoothing import Smoothing, smooth_over_frames, smooth_over_seconds
from runtime.camera.stream import WAITING, FramePrediction, describe_wait, predict_stream
from runtime.common.errors import CameraError, PictureError
from runtime.inference.prediction import ClassScore, ModelOutput, Prediction
from tests.runtime.camera.helpers import BLUE, GREEN, RED, Clock, plain

INTERVAL = 0.1  # seconds from frame to frame
NO_SMOOTHING = smooth_over_frames(1)


@dataclass
class FakeModel:
    """Names a picture by its strongest channel; inference takes `seconds`."""

    clock: Clock
    labels: tuple[str, ...] = ("red", "green", "blue")
    seconds: float = 0.0
    started: list[float] = field(default_factory=list)
    model_id: str = "a"
    correction: object = None
    learned: object = None

    @property
    def model(self) -> Any:
        return SimpleNamespace(contract=SimpleNamespace(input_size=(8, 8), model_id=self.model_id))

    def infer(self, pixels: NDArray[np.uint8]) -> ModelOutput:
        assert pixels.shape == (8, 8, 3)
        self.started.append(self.clock.now)
        self.clock.sleep(self.seconds)
        mean = pixels.reshape(-1, 3).mean(axis=0, dtype=np.float32)
        return ModelOutput(mean / mean.sum(), None, 1000 * self.seconds)

    def to_prediction(self, source: str, output: ModelOutput, decode_ms: float) -> Prediction:
        best = int(output.probabilities.argmax())
        score = ClassScore(self.labels[best], float(output.probabilities[best]))
        ms = {"decode": decode_ms, "infer": output.ms}
        return Prediction(source, score.label, score.probability, None, (score,), ms)


@dataclass
class FakeCamera:
    """A frame every `interval` in the given colors; None is an interval in which the camera is lost."""

    clock: Clock
    colors: list[tuple[int, int, int] | None]
    name: str = "0"
    decode_ms: float = 0.0
    interval: float = INTERVAL
    asked: list[float] = field(default_factory=list)  # the `max_age` of each call

    def __post_init__(self) -> None:
        self.started = self.clock.now

    @property
    def frame_count(self) -> int:
        return min(len(self.colors), int((self.clock.now - self.started) / self.interval + 1e-6) + 1)

    @property
    def frame_interval(self) -> float:
        return self.interval if self.frame_count > 1 else 0.0

    @property
    def ended(self) -> bool:
        return self.frame_count == len(self.colors)

    @property
    def first_frame(self) -> int:
        shown = self.colors[: self.frame_count]
        return 1 + max((number for number, color in enumerate(shown, 1) if color is None), default=0)

    @property
    def problem(self) -> str:
        return "is lost" if self.colors[self.frame_count - 1] is None else ""

    def newest(self, after: int = 0, timeout: float = 1.0, *, max_age: float = float("inf")) -> Frame | None:
        self.asked.append(max_age)
        deadline = self.clock.now + timeout
        while (number := self.frame_count) <= after or self._age(number) > max(max_age, 0.001):
            if self.ended:
                return None
            self.clock.now = min(deadline, self._arrival(number + 1))
            if self.clock.now == deadline:
                return None
        color = self.colors[number - 1]
        if color is None:
            self.clock.now = self._arrival(number + 1)
            return None
        self.clock.sleep(self.decode_ms / 1000)
        return Frame(plain(color), self._arrival(number), number, self.decode_ms)

    def _arrival(self, number: int) -> float:
        return self.started + self.interval * (number - 1)

    def _age(self, number: int) -> float:
        return self.clock.now - self._arrival(number)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(stream, "time", fake)
    return fake


def predict(
    camera: FakeCamera, model: FakeModel, *, every: float = 0.0, smoothing: Smoothing = NO_SMOOTHING
) -> list[FramePrediction]:
    reloader = SimpleNamespace(current=lambda: model)
    return list(predict_stream(cast(Any, camera), cast(Any, reloader), every=every, smoothing=smoothing))


def test_each_frame_is_classified_until_the_clip_ends(clock: Clock) -> None:
    shown = predict(FakeCamera(clock, [RED, GREEN, BLUE]), FakeModel(clock))
    assert [one.prediction.label for one in shown] == ["red", "green", "blue"]
    assert [one.frame.number for one in shown] == [1, 2, 3] and shown[-1].dropped == 0
    assert [one.fps for one in shown] == [0, 10, 10] and shown[0].prediction.source == "0"


@pytest.mark.parametrize(("model_id", "label"), [("a", "red"), ("b", "green")])
def test_another_engine_continues_the_smoothing_and_another_model_does_not(
    clock: Clock, model_id: str, label: str
) -> None:
    first, second = FakeModel(clock), FakeModel(clock, model_id=model_id)
    reloader = SimpleNamespace(current=lambda: second if len(first.started) == 5 else first)
    camera = cast(Any, FakeCamera(clock, [RED] * 5 + [GREEN]))
    shown = list(predict_stream(camera, cast(Any, reloader), smoothing=smooth_over_frames(10)))
    assert len(second.started) == 1
    assert shown[-1].prediction.label == label and shown[-1].unsmoothed.label == "green"


def test_a_slow_model_drops_frames_and_counts_them(clock: Clock) -> None:
    shown = predict(FakeCamera(clock, [RED] * 20), FakeModel(clock, seconds=0.35))
    assert [one.frame.number for one in shown] == [1, 4, 8, 11, 15, 18]
    assert [one.dropped for one in shown] == [0, 2, 5, 7, 10, 12]


def test_the_age_runs_from_the_capture_to_the_answer(clock: Clock) -> None:
    shown = predict(FakeCamera(clock, [RED] * 20, decode_ms=20), FakeModel(clock, seconds=0.03))
    assert all(one.age_ms == pytest.approx(50, abs=0.2) for one in shown)
    assert all(one.prediction.ms["decode"] == pytest.approx(20) for one in shown)


def test_every_limits_the_rate_and_late_answers_are_not_made_up_for(clock: Clock) -> None:
    model = FakeModel(clock)
    predict(FakeCamera(clock, [RED] * 40), model, every=0.5)
    assert np.diff(model.started).tolist() == pytest.approx([0.5] * (len(model.started) - 1), abs=INTERVAL)
    slow = FakeModel(clock, seconds=0.75)
    predict(FakeCamera(clock, [RED] * 40), slow, every=0.5)
    assert min(np.diff(slow.started)) >= 0.75 - 1e-6


def test_a_frame_too_old_to_prepare_in_time_is_not_asked_for(clock: Clock) -> None:
    camera = FakeCamera(clock, [RED] * 10, decode_ms=40)
    predict(camera, FakeModel(clock))
    assert camera.asked[0] == 0 and camera.asked[-1] == pytest.approx(INTERVAL - 0.04)


def test_a_frame_overtaken_while_it_is_prepared_is_replaced_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, durations = stream.read_picture, [0.0, 0.08, 0.0]

    def slow_then_fast(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        clock.sleep(durations.pop(0))
        return read(pixels, size)

    monkeypatch.setattr(stream, "read_picture", slow_then_fast)
    camera, model = FakeCamera(clock, [RED, GREEN, BLUE] + [RED] * 5), FakeModel(clock, seconds=0.15)
    reloader = SimpleNamespace(current=lambda: model)
    first, second = islice(predict_stream(cast(Any, camera), cast(Any, reloader), smoothing=NO_SMOOTHING), 2)
    # At 0.15 s frame 2 is 0.05 s old; preparing it ends at 0.23 s, after frame 3 arrived: frame 4 is next.
    assert (first.frame.number, second.frame.number, durations) == (1, 4, [])
    assert model.started[1] - second.frame.captured_at < INTERVAL / 2


def test_smoothing_lags_behind_a_change_and_the_unsmoothed_prediction_does_not(clock: Clock) -> None:
    shown = predict(
        FakeCamera(clock, [RED] * 5 + [BLUE] * 5), FakeModel(clock), smoothing=smooth_over_seconds(1)
    )
    assert [one.prediction.label for one in shown[:7]] == ["red"] * 7
    assert [one.unsmoothed.label for one in shown] == ["red"] * 5 + ["blue"] * 5
    assert shown[6].prediction.probability < shown[4].prediction.probability


@pytest.mark.parametrize("gap", [[None], [None, None]])
def test_a_gap_starts_a_new_average(clock: Clock, gap: list[None]) -> None:
    colors = [RED, RED, *gap, BLUE, BLUE]
    shown = predict(FakeCamera(clock, colors), FakeModel(clock), smoothing=smooth_over_seconds(1000))
    assert [one.prediction.label for one in shown] == ["red", "red", "blue", "blue"]
    assert shown[2].fps == 0


@pytest.mark.parametrize("every", [0.0, 5 * INTERVAL])
def test_after_an_outage_the_first_answer_counts_at_once(clock: Clock, every: float) -> None:
    """With `every`, no frame is asked for during the outage."""
    shown = predict(FakeCamera(clock, [RED, RED, None, BLUE, BLUE, BLUE, RED]), FakeModel(clock), every=every)
    changes = [(one.frame.number, one.prediction.label) for one in shown if one.is_change]
    assert changes == [(1, "red"), (6 if every else 4, "blue")]


def test_an_answer_from_before_an_outage_is_not_current(clock: Clock) -> None:
    camera = cast(Any, FakeCamera(clock, [RED, RED, None, BLUE]))
    assert [describe_wait(camera, answered) for answered in (0, 1)] == [WAITING, ""]
    clock.sleep(3 * INTERVAL)
    assert [describe_wait(camera, answered) for answered in (2, 4)] == [WAITING, ""]


def test_frames_of_a_slow_camera_are_smoothed(clock: Clock) -> None:
    camera = FakeCamera(clock, [RED] * 5 + [BLUE], interval=2.5)
    shown = predict(camera, FakeModel(clock), smoothing=smooth_over_seconds(1000))
    assert [one.prediction.label for one in shown] == ["red"] * 6 and shown[-1].unsmoothed.label == "blue"
    assert shown[-1].fps == pytest.approx(0.4)


def test_another_model_starts_a_new_average(clock: Clock) -> None:
    first, second = FakeModel(clock), FakeModel(clock, labels=("rot", "grün", "blau"), model_id="b")
    models = iter([first, first, second, second])
    reloader = SimpleNamespace(current=lambda: next(models))
    camera = FakeCamera(clock, [RED, RED, BLUE, BLUE])
    shown = predict_stream(cast(Any, camera), cast(Any, reloader), smoothing=smooth_over_seconds(1000))
    assert [one.prediction.label for one in shown] == ["red", "red", "blau", "blau"]


def test_a_frame_that_cannot_be_prepared_is_skipped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = stream.read_picture, [PictureError("needs too much memory"), None, None]

    def fail_once(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        if error := failures.pop(0):
            raise error
        return read(pixels, size)

    monkeypatch.setattr(stream, "read_picture", fail_once)
    shown = predict(FakeCamera(clock, [RED, GREEN, BLUE]), FakeModel(clock))
    assert [one.prediction.label for one in shown] == ["green", "blue"]
    assert [one.dropped for one in shown] == [1, 1]


def test_refused_frames_are_reported_once_and_when_frames_are_good_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, messages = stream.read_picture, list[tuple[int, str]]()
    camera = FakeCamera(clock, [RED] * 130 + [GREEN] * 3 + [RED] * 3)

    def refuse_red(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        if (pixels[0, 0] == RED).all():
            raise PictureError("is 1 x 480 pixels: too narrow")
        return read(pixels, size)

    monkeypatch.setattr(stream, "read_picture", refuse_red)
    reloader = SimpleNamespace(current=lambda: FakeModel(clock))
    shown = predict_stream(
        cast(Any, camera),
        cast(Any, reloader),
        smoothing=NO_SMOOTHING,
        on_refused=lambda problem: messages.append((camera.frame_count, problem)),
    )
    assert [one.prediction.label for one in islice(shown, 3)] == ["green"] * 3
    (at, problem), (again, good) = messages
    assert at == pytest.approx(FRAME_TIMEOUT / INTERVAL, abs=3) and (again, good) == (131, "")
    assert problem.startswith("0: the picture to classify is 1 x 480 pixels: too narrow: check --crop")
    with pytest.raises(CameraError, match="too narrow"):  # a clip that ends before the report
        next(shown)
    camera = FakeCamera(clock, [RED] * 130)  # a clip that ends after the report
    reported = list[str]()
    shown = predict_stream(cast(Any, camera), cast(Any, reloader), on_refused=reported.append)
    assert list(shown) == [] and len(reported) == 1
