"""The default set of negatives: pictures of objects that show none of the classes of a user's photos."""

from __future__ import annotations

from pathlib import Path

from runtime.common.user_cache import cache_home


def default_negatives_folder() -> Path:
    """The folder of the default set in the user's cache, which may not exist yet."""
    return cache_home() / "negatives"
