"""Crop: the region of a camera's frames that is classified and saved, in fractions of their size."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_SIDE = 0.02  # a smaller region is a click, not a drawn region
DECIMALS = 4  # enough for a pixel of an 8K frame
ROUNDING = 1.1e-4  # of a sum of two rounded fractions
FORMAT = (
    "X,Y,W,H with fractions of the frame's width and height from 0 to 1, such as 0.25,0,0.5,1 for the "
    "middle half"
)


@dataclass(frozen=True)
class Crop:
    """A region of a frame. The fractions do not depend on the camera's resolution."""

    x: float  # of the left edge, 0 to 1
    y: float  # of the upper edge
    width: float
    height: float

    def apply(self, frame: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
        """Returns the region of a frame [h, w, 3], at least 1 x 1 pixel, without a copy."""
        height, width = frame.shape[:2]
        top, bottom = _edges(self.y, self.height, height)
        left, right = _edges(self.x, self.width, width)
        return frame[top:bottom, left:right]

    def to_list(self) -> list[float]:
        return [self.x, self.y, self.width, self.height]


def make_crop(numbers: Sequence[object]) -> Crop:
    """Returns the region with these [x, y, width, height]. Raises ValueError unless it is in the frame."""
    # NaN fails each comparison.
    fractions = [float(n) for n in numbers if isinstance(n, int | float) and 0 <= n <= 1]
    if not len(numbers) == len(fractions) == 4:
        raise ValueError(f"is not {FORMAT}")
    x, y, width, height = (round(fraction, DECIMALS) for fraction in fractions)
    if min(width, height) < MIN_SIDE or max(x + width, y + height) > 1 + ROUNDING:
        raise ValueError(
            f"is not inside the frame with sides of at least {MIN_SIDE}: X + W and Y + H are at most 1"
        )
    return Crop(x, y, width, height)


def parse_crop(text: str) -> Crop:
    """Parses the value of --crop. Raises ArgumentTypeError."""
    numbers: list[float] = []
    with suppress(ValueError):
        numbers = [float(part) for part in text.split(",")]
    try:
        return make_crop(numbers)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _edges(start: float, side: float, pixels: int) -> tuple[int, int]:
    first = min(round(start * pixels), pixels - 1)
    return first, max(first + 1, min(round((start + side) * pixels), pixels))
