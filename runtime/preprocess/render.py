"""Turns a picture's bytes into an image of the model's size; needs Pillow alone, in any process.

Decode (large JPEGs at a reduced scale) → EXIF orientation → ICC profile to sRGB → RGB → bilinear,
antialiased resize, stretched to the model's input.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from PIL import Image

from runtime.preprocess.color import to_rgb
from runtime.preprocess.decode import open_image
from runtime.preprocess.formats import HEAD_BYTES, format_of
from runtime.preprocess.headers import check_metadata
from runtime.preprocess.limits import DecodeCost, check_limits, check_webp_limits

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


def render(
    data: bytes,
    size: tuple[int, int],
    reserve: Callable[[DecodeCost], AbstractContextManager[None]],
    *,
    fit: bool = False,
) -> Image.Image:
    """Returns encoded bytes as an RGB image of `size` (H, W); decodes within `reserve(cost)`.

    With `fit`, the image keeps its shape, and `size` is the largest. Raises PictureError, and whatever Pillow
    raises for damaged data.
    """
    format = format_of(data[:HEAD_BYTES])
    check_metadata(format, data)
    if format == "WEBP":
        with reserve(check_webp_limits(data)):
            return _load(open_image(data), size, fit)
    image = open_image(data)
    full_size = image.size
    if image.format == "JPEG":  # the draft of a HEIC would be its thumbnail
        side = (1 if fit else DRAFT_SCALE) * max(size)  # for both sides: photos are often stored sideways
        image.draft(None, (side, side))
    with reserve(check_limits(image, full_size, data)):
        return _load(image, size, fit)


def _load(image: Image.Image, size: tuple[int, int], fit: bool) -> Image.Image:
    image.load()
    return resize(to_rgb(_upright(image)), size, fit=fit)


def resize(image: Image.Image, size: tuple[int, int], *, fit: bool = False) -> Image.Image:
    """Returns the image stretched to `size` (H, W); with `fit`, reduced to at most `size` in its shape."""
    height, width = size
    if fit:
        scale = min(1, height / image.height, width / image.width)
        height, width = (max(1, round(scale * side)) for side in (image.height, image.width))
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, and fails where that is damaged.
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (ImportError, MemoryError):
        raise
    except Exception:  # damaged EXIF data: the picture itself may be good
        orientation = 1
    transpose = _TRANSPOSE.get(orientation)
    return image if transpose is None else image.transpose(transpose)
