"""encode_preview: a picture as a small JPEG, for the page and for other programs."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE = 960  # pixels; a quarter of the encoding time of 1080p
JPEG_QUALITY = 80


def encode_preview(pixels: NDArray[np.uint8]) -> bytes:
    """Returns pixels [h, w, 3], RGB, as a JPEG of at most MAX_SIDE pixels per side, without metadata."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
