"""Where this project keeps what can be made again: the user's cache folder."""

import os
import sys
from pathlib import Path


def cache_home() -> Path:
    """The project's folder in the user's cache, not made here; XDG_CACHE_HOME moves it on every system.

    Raises RuntimeError where the user has no home.
    """
    if moved := os.environ.get("XDG_CACHE_HOME"):
        return Path(moved) / "vgg-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vgg-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vgg-edge"
    return Path.home() / ".cache" / "vgg-edge"
