"""The project's folder in the user's cache, for files that can be created again."""

import os
import sys
from pathlib import Path


def cache_home() -> Path:
    """Returns the folder, which may not exist yet. XDG_CACHE_HOME moves it on every system.

    Raises RuntimeError when the user has no home folder.
    """
    if moved := os.environ.get("XDG_CACHE_HOME"):
        return Path(moved) / "vgg-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vgg-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vgg-edge"
    return Path.home() / ".cache" / "vgg-edge"
