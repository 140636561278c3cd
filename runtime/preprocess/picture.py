"""The only code that turns a picture into pixels: training, calibration, parity and the device all call it.

Decode (large JPEGs at a reduced scale) → EXIF orientation → ICC profile to sRGB → RGB → bilinear,
antialiased resize, stretched to the model's input. Any bytes, hostile ones included, give either pixels or a
PictureError with one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.preprocess.color import to_rgb
from runtime.preprocess.decode import describe_error, open_image, read_encoded
from runtime.preprocess.limits import DECODE_MEMORY, check_limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.preprocess.decode import EncodedSource

    Pixels = NDArray[np.uint8]  # [H, W, 3], RGB
    Source = EncodedSource | Pixels  # pixels are a camera's frame: upright, in sRGB

PICTURE_VERSION = 1  # raised when a picture's pixels change: caches of results computed from pixels use it

# libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the cost. The smallest scale is taken that still gives
# this many times the size of the model's input; docs/decisions.md has the measurements.
DRAFT_SCALE = 3

_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        data, image = b"", Image.fromarray(source)
    else:
        data = read_encoded(source)
        image = open_image(data)
    full_size = image.size
    if image.format == "JPEG":  # the draft of a HEIC would be its thumbnail
        side = DRAFT_SCALE * max(size)  # for both sides: photos are often stored sideways
        image.draft(None, (side, side))
    with DECODE_MEMORY.reserve(check_limits(image, full_size, data)):
        image.load()
        image = to_rgb(_upright(image))
        height, width = size
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, and fails where that is damaged.
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data: the picture itself may be good
        orientation = 1
    transpose = _TRANSPOSE.get(orientation)
    return image if transpose is None else image.transpose(transpose)
