"""The region of the camera's frames that is classified: --crop, or a region that was drawn on the page."""

import json
from pathlib import Path

from runtime.camera.crop import Crop, make_crop
from runtime.common.atomic import atomic_write
from runtime.common.errors import ModelError
from runtime.common.terminal import print_info
from runtime.common.text import printable
from runtime.inference.correction import FOLDER_VARIABLE, SUFFIX, path_beside
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.files import is_file, read_bytes
from runtime.server.errors import RequestRejected

CROP_NAME = "camera.crop.json"  # beside the model's correction: the region is the camera's, not the model's
MAX_FILE_BYTES = 1000
UNREADABLE = "holds no region: the whole frame is classified; draw the region again"


class CropSetting:
    """The region in use. With `fixed`, the value of --crop, no other region can be saved.

    A saved region is in a file beside the model, or in the folder that VGG_EDGE_CORRECTIONS names. Any thread
    may read `current`.
    """

    def __init__(self, model: ReloadingClassifier, fixed: Crop | None = None) -> None:
        self.is_fixed = fixed is not None
        self.path = path_beside(model.current().model, SUFFIX, FOLDER_VARIABLE).with_name(CROP_NAME)
        self.current = fixed or _read(self.path)

    def save(self, crop: Crop | None) -> None:
        """Uses this region from the next frame on, also after a restart; None: the whole frame.

        Raises RequestRejected (409, 500).
        """
        if self.is_fixed:
            raise RequestRejected(409, "the service runs with --crop: start it without this flag")
        try:
            if crop is None:
                self.path.unlink(missing_ok=True)
            else:
                with atomic_write(self.path) as file:
                    file.write(json.dumps({"crop": crop.to_list()}).encode())
        except OSError as error:
            reason = str(error.strerror or error).lower()
            raise RequestRejected(
                500, f"{printable(str(self.path))}: {reason}: --crop sets the region without a file"
            ) from None
        self.current = crop


def parse_crop_json(data: bytes) -> Crop | None:
    """Parses {"crop": [x, y, width, height]} or {"crop": null}. Raises ValueError with a reason."""
    try:
        numbers = json.loads(data)["crop"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('the body is not {"crop": [x, y, width, height]}') from None
    if numbers is None:
        return None
    if not isinstance(numbers, list):
        raise ValueError("crop is neither a list nor null")
    try:
        return make_crop(numbers)
    except ValueError as error:
        raise ValueError(f"crop {error}") from None


def _read(path: Path) -> Crop | None:
    """Returns the saved region; None, with a message, if the file cannot be used."""
    try:
        if not is_file(path):
            return None
        return parse_crop_json(read_bytes(path, MAX_FILE_BYTES))
    except (ModelError, ValueError):
        print_info(f"warning: {path}: {UNREADABLE}")
        return None
