"""The project's folders of a user: the cache, for files that can be created again, and the state."""

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


def state_home() -> Path:
    """Returns the folder for files that must last, which may not exist yet. XDG_STATE_HOME moves it.

    Raises RuntimeError when the user has no home folder.
    """
    if moved := os.environ.get("XDG_STATE_HOME"):
        return Path(moved) / "vgg-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vgg-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "vgg-edge"
    return Path.home() / ".local" / "state" / "vgg-edge"
