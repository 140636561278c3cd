"""RawFrame: a frame as a capture backend delivers it, before its pixels are decoded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Seconds that a camera may take to connect, and to send the next frame, before it counts as lost.
FRAME_TIMEOUT = 10.0

MAX_FRAME_PIXELS = 7680 * 4320  # 8K


@dataclass(frozen=True)
class RawFrame:
    """A captured frame whose pixels are decoded on demand."""

    captured_at: float  # time.monotonic() seconds
    decode: Callable[[], NDArray[np.uint8]]  # [h, w, 3], RGB; call it once; raises if the frame is damaged
    release: Callable[[], None] = lambda: None  # frees the buffer, whether or not decode() was called


def one_line(error: Exception) -> str:
    """The text of a library's exception in one line of at most 200 characters, or its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__
