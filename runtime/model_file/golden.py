"""The golden picture: every model file states its outputs for it, so that a device can check itself."""

import numpy as np
from numpy.typing import NDArray

_HALF = 512  # coordinates run from -512 to 511


def golden_picture(height: int, width: int) -> NDArray[np.uint8]:
    """Returns a drawn flower, uint8 [height, width, 3], RGB: equal bytes on every machine.

    All arithmetic is on integers, because the last bit of a float depends on the processor. No two channels
    are equal and no mirror image is, so that swapped channels or a flipped picture change the outputs.
    """
    y = (2 * _HALF * np.arange(height, dtype=np.int64) // height - _HALF)[:, np.newaxis]
    x = (2 * _HALF * np.arange(width, dtype=np.int64) // width - _HALF)[np.newaxis]
    meadow = np.stack(np.broadcast_arrays(60 + x // 12, 120 + y // 8, 40 + (x + y) // 32), axis=2)
    dx, dy = x + 40, y - 24  # the flower is not in the middle
    squared = dx * dx + dy * dy  # of the distance r from its middle
    # The real part of (dx + i dy)^6 is r^6 cos(6 angle): positive on six petals. It is below 2^63.
    sixth = dx**6 - 15 * dx**4 * dy**2 + 15 * dx**2 * dy**4 - dy**6
    petals = (squared < 380**2) & (10 * sixth > -3 * squared**3)
    shade = squared // 2048  # 0 to 70 on the petals
    flower = np.stack(np.broadcast_arrays(250 - shade, 215 - 2 * shade, 20 + shade // 2), axis=2)
    picture = np.where(petals[..., np.newaxis], flower, meadow)
    picture[squared < 120**2] = (96, 56, 24)
    return np.clip(picture, 0, 255).astype(np.uint8)
