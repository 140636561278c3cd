"""The user's cache folder: everything in it can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.errors import UserError


class CacheError(UserError):
    """A cache that cannot be written or read."""

    def __init__(self, place: Path, error: OSError) -> None:
        super().__init__(
            f"cache {place}: {error.strerror or error}; make room, or set XDG_CACHE_HOME to a folder of yours"
        )


def cache_folder(name: str) -> Path:
    """`name` under the cache of this project, made if need be; XDG_CACHE_HOME moves it. Raises CacheError."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "vgg-edge" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(folder, error) from None
    return folder
