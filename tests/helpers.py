"""Helpers that tests of several packages share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the checkout
RELEASED = ROOT / "models" / "flowers"


def wait_for(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until `happened()` is true. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"did not happen within {seconds:g} s"
        time.sleep(0.02)
