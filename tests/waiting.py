"""For what happens on another thread, or in another process."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Asks often, as a camera does."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"did not happen within {seconds:g} s"
        time.sleep(0.02)
