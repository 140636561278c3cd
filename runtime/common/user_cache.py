"""The project's folders of a user: the cache, for files that can be created again, and the state."""

import os
import sys
from pathlib import Path


def cache_home() -> Path:
    """Returns the folder, which may not exist yet. XDG_CACHE_HOME moves it on every system.

    Raises RuntimeError when the user has no home folder.
    """
    return _folder("XDG_CACHE_HOME", mac="Caches", other=".cache")


def state_home() -> Path:
    """Returns the folder for files that must last, which may not exist yet. XDG_STATE_HOME moves it.

    Raises RuntimeError when the user has no home folder.
    """
    return _folder("XDG_STATE_HOME", mac="Application Support", other=".local/state")


def _folder(variable: str, mac: str, other: str) -> Path:
    if moved := os.environ.get(variable):
        return Path(moved) / "vgg-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vgg-edge"
    return Path.home() / (f"Library/{mac}" if sys.platform == "darwin" else other) / "vgg-edge"
