"""The only code that turns a picture into pixels: training, calibration, parity and the device all call it.

`read_picture` decodes in this process; runtime/preprocess/decode_pool.py does the same in others. Any bytes,
hostile ones included, give either pixels or a PictureError with one line.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.preprocess.color import to_rgb
from runtime.preprocess.decode import SOURCES, describe_error, read_encoded
from runtime.preprocess.limits import check_limits
from runtime.preprocess.memory import DECODE_MEMORY
from runtime.preprocess.render import render, resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.preprocess.decode import EncodedSource

    Pixels = NDArray[np.uint8]  # [H, W, 3], RGB
    Source = EncodedSource | Pixels  # pixels are a camera's frame: upright, in sRGB

PICTURE_VERSION = 1  # raised when a picture's pixels change: caches of results computed from pixels use it


def read_picture(source: Source, size: tuple[int, int] = (224, 224)) -> Pixels:
    """Reads a path, encoded bytes, a binary file or a frame as uint8 [H, W, 3], RGB; `size` is (H, W).

    Raises PictureError when the picture is unreadable, damaged or too large, and UnsupportedPictureError when
    it is not a picture, or needs another package. Threads that decode at the same time wait for each other
    when their pictures would take more than half of the machine's memory.
    """
    try:
        return _read_picture(source, size)
    except Exception as error:  # Pillow's plugins raise exceptions of many types for damaged data
        path = f"{source}: " if isinstance(source, (str, Path)) else ""
        kind = UnsupportedPictureError if isinstance(error, UnsupportedPictureError) else PictureError
        failure = kind(f"{path}{describe_error(error)}")
    raise failure  # outside the except block: `error` would keep the decoded picture in memory


def _read_picture(source: Source, size: tuple[int, int]) -> Pixels:
    if isinstance(source, np.ndarray):
        frame = _frame(source)
        check_limits(frame, frame.size, b"")
        return np.asarray(resize(to_rgb(frame), size))
    return np.asarray(render(read_encoded(source), size, lambda cost: DECODE_MEMORY.reserve(cost.bytes)))


def _frame(pixels: Pixels) -> Image.Image:
    """Returns the frame as an image. Raises UnsupportedPictureError for an array that is no picture."""
    with suppress(TypeError, ValueError):
        if pixels.ndim > 1:
            return Image.fromarray(pixels)
    raise UnsupportedPictureError(f"is an array {pixels.dtype} {list(pixels.shape)}: {SOURCES}")
