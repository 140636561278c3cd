"""Publishes the answers of a camera: each change, and the newest probability now and then."""

from collections.abc import Callable

from runtime.camera.stream import FramePrediction
from runtime.publish.answer import Answer, Publish

# Seconds. A change is published while the smoothed probability still rises.
REFRESH_INTERVAL = 10.0


def frame_publisher(publish: Publish) -> Callable[[FramePrediction], None]:
    """Returns a function that gets every frame, and publishes the changes of the answer.

    A frame with the same answer is published REFRESH_INTERVAL seconds after the last one.
    """
    published_at, answer = 0.0, ""

    def on_frame(frame_prediction: FramePrediction) -> None:
        nonlocal published_at, answer
        now, prediction = frame_prediction.frame.captured_at, frame_prediction.prediction
        if frame_prediction.is_change:
            answer = prediction.answer
        elif prediction.answer != answer or now - published_at < REFRESH_INTERVAL:
            return
        published_at = now
        is_change = frame_prediction.is_change
        publish(Answer(prediction, frame_prediction.time, frame_prediction.picture, is_change))

    return on_frame
