"""Saves classified frames and photos in the folders of --capture, --save-unknown and --save-all."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.camera.capture_folder import check_capture_folder, class_folder
from runtime.camera.options import SaveOptions
from runtime.camera.recorder import GetPixels, PhotoRecorder
from runtime.camera.stream import FramePrediction
from runtime.common.errors import UserError
from runtime.inference.prediction import Prediction
from runtime.inference.prefetch import DECODERS
from runtime.model_file.loader import ModelFile

if TYPE_CHECKING:
    from runtime.preprocess.decode import EncodedSource
    from runtime.preprocess.picture import Pixels

CAPTURE_INTERVAL = 1.0  # seconds between saved frames without --every: adjacent frames are nearly the same
MAX_SIDE = 960  # pixels per side of a saved photo; a camera's frames keep their size

# Prediction, pixels, number of the frame or photo, and a frame's time in seconds (None for a photo). Returns
# False if the picture cannot be written.
Save = Callable[[Prediction, GetPixels, int, "float | None"], bool]


def check_save_options(options: SaveOptions) -> None:
    """Raises UserError if training would not read the folder of --capture as asked, or for one folder of two
    flags: each would fill it up to --max-mb.
    """
    folders = {"--save-unknown": options.save_unknown, "--save-all": options.save_all}
    if options.capture:
        label, folder = options.capture
        check_capture_folder(label, folder, new_class=options.new_class)
        folders["--capture"] = class_folder(label, folder)
    flags: dict[str, str] = {}
    for flag, path in folders.items():
        if path and (other := flags.setdefault(os.path.realpath(path), flag)) != flag:
            raise UserError(f"{flag} {path}: is the folder of {other} too: choose another folder")


@contextmanager
def open_recorders(
    options: SaveOptions, model: ModelFile, every: float, on_message: Callable[[str], None]
) -> Iterator[Save]:
    """Opens the folders that the options name, and gives the function that saves a picture in them.

    `every` is the value of --every in seconds, which limits the frames already. Raises UserError.
    """
    interval = 0.0 if every else CAPTURE_INTERVAL
    with ExitStack() as stack:

        def open_recorder(folder: Path, *, sample: bool = False) -> PhotoRecorder:
            return stack.enter_context(
                PhotoRecorder(folder, interval, options.max_mb, on_message, sample=sample)
            )

        unknown = all_pictures = captured = None
        if options.save_unknown:
            _require_known(model)
            unknown = open_recorder(options.save_unknown)
        if options.save_all:
            all_pictures = open_recorder(options.save_all, sample=True)
        if options.capture:
            label, folder = options.capture
            captured = open_recorder(class_folder(label, folder))

        def save(
            prediction: Prediction, get_pixels: GetPixels, number: int, captured_at: float | None
        ) -> bool:
            wanted = (unknown if prediction.known is False else None, all_pictures, captured)
            results = [recorder.save(get_pixels, number, captured_at) for recorder in filter(None, wanted)]
            return all(results)

        yield save


def frame_saver(save: Save) -> Callable[[FramePrediction], None]:
    """Returns the function that saves a camera's frame."""

    def save_frame(frame_prediction: FramePrediction) -> None:
        frame = frame_prediction.frame
        save(frame_prediction.prediction, frame_prediction.picture, frame.number, frame.captured_at)

    return save_frame


def photo_pixels(source: "EncodedSource") -> "Pixels":
    """Returns a photo as it is saved: at most MAX_SIDE pixels per side, without metadata.

    Raises PictureError.
    """
    return DECODERS.decode(source, (MAX_SIDE, MAX_SIDE), fit=True)


def _require_known(model: ModelFile) -> None:
    if "known" not in model.contract.thresholds:
        raise UserError(
            f"--save-unknown: {model.path} does not detect unknown pictures: choose another --model"
        )
