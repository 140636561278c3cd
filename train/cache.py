"""The user's cache folder: everything in it can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`name` under the cache of this project, made if need be; XDG_CACHE_HOME moves it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "vgg-edge" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
