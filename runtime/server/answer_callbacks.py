"""The callbacks that get each answer of the service: they save its picture, and publish it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import count
from typing import Any

from runtime.camera.frame_publisher import frame_publisher
from runtime.camera.options import SaveOptions
from runtime.camera.saving import frame_saver, open_recorders, photo_pixels
from runtime.camera.stream import FramePrediction
from runtime.common.errors import UserError
from runtime.common.terminal import print_info
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.preprocess.stored_photo import encode_photo
from runtime.publish.answer import Answer
from runtime.publish.publishers import (
    EACH_PHOTO,
    LATEST_ONLY,
    PublishOptions,
    diagnostics_of,
    open_publishers,
)

MAX_WAITING_BYTES = 500_000  # of an upload that waits for the broker as it is


@dataclass(frozen=True)
class AnswerCallbacks:
    """The functions that get each answer, in the thread that computed it."""

    on_frame: Callable[[FramePrediction], None]
    on_photo: Callable[[Prediction, bytes], None]  # the bytes of the uploaded file


@contextmanager
def open_answer_callbacks(
    saving: SaveOptions,
    publishing: PublishOptions,
    every: float,
    model: ReloadingClassifier,
    camera_problem: Callable[[], str] | None,
) -> Iterator[AnswerCallbacks]:
    """Opens the folders and the connections that the options ask for. Raises UserError.

    Frames and photos are saved. Published are the answers of the camera, or of the photos if there is none.
    `every` is the value of --every in seconds. `camera_problem` returns one line while the camera's last
    answer is not current, and "" otherwise. It is None without a camera.
    """

    def diagnostics() -> dict[str, Any]:
        return diagnostics_of(model.current(), camera_problem() if camera_problem else "")

    numbers = count(1)
    with ExitStack() as stack:
        save = stack.enter_context(open_recorders(saving, model.current().model, every, print_info))
        capacity = LATEST_ONLY if camera_problem else EACH_PHOTO
        publish = stack.enter_context(open_publishers(publishing, diagnostics, print_info, capacity))
        save_frame, publish_frame = frame_saver(save), frame_publisher(publish)

        def on_frame(frame_prediction: FramePrediction) -> None:
            save_frame(frame_prediction)
            publish_frame(frame_prediction)

        def on_photo(prediction: Prediction, data: bytes) -> None:
            get_pixels = partial(photo_pixels, data)
            save(prediction, get_pixels, next(numbers), None)
            if camera_problem is None:
                photo = data if len(data) <= MAX_WAITING_BYTES else b""
                if publishing.mqtt and not photo:  # only MQTT clients get pictures
                    # A small copy waits for the broker with its answer, and not the upload of 32 MB.
                    with suppress(UserError):  # such as too little memory
                        photo = encode_photo(get_pixels())
                publish(Answer(prediction, datetime.now(timezone.utc), partial(photo_pixels, photo)))

        yield AnswerCallbacks(on_frame, on_photo)
