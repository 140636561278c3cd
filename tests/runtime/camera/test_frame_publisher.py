"""frame_publisher: which frames of a camera are published."""

from __future__ import annotations

from runtime.camera.camera import Frame
from runtime.camera.crop import Crop
from runtime.camera.frame_publisher import REFRESH_INTERVAL, frame_publisher
from runtime.camera.stream import FramePrediction
from runtime.inference.prediction import ClassScore, Prediction
from runtime.publish.answer import Answer
from tests.runtime.camera.helpers import RED, plain


def frame(label: str, at: float, *, is_change: bool = False, known: bool | None = None) -> FramePrediction:
    prediction = Prediction("0", label, 0.9, known, (ClassScore(label, 0.9),), {})
    shown = Frame(plain(RED), at, 1)
    half = Crop(0.0, 0.0, 0.5, 1.0)
    return FramePrediction(shown, prediction, prediction, 1.0, 1.0, 0, is_change=is_change, crop=half)


def published(frames: list[FramePrediction]) -> list[tuple[str, bool]]:
    answers = list[Answer]()
    on_frame = frame_publisher(answers.append)
    for shown in frames:
        on_frame(shown)
    assert all(answer.get_pixels().shape == (48, 32, 3) for answer in answers)
    return [(answer.prediction.answer, answer.is_change) for answer in answers]


def test_changes_are_published_at_once_and_other_frames_now_and_then() -> None:
    start = 100.0
    frames = [frame("roses", start, is_change=True)]
    frames += [frame("roses", start + 0.1 * number) for number in range(1, round(25 * REFRESH_INTERVAL))]
    assert published(frames) == [("roses", True), ("roses", False), ("roses", False)]
    frames.insert(50, frame("tulips", start + 5, is_change=True))
    assert published(frames)[:2] == [("roses", True), ("tulips", True)]


def test_an_answer_that_did_not_count_yet_is_not_published() -> None:
    later = 100 + 2 * REFRESH_INTERVAL
    frames = [frame("roses", 100, is_change=True), frame("tulips", later), frame("roses", later, known=False)]
    assert published(frames) == [("roses", True)]
