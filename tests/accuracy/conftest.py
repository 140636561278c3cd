"""Fixtures for the tests on real photos. VGG_EDGE_PHOTOS names the folder that holds train/ and test/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train.cache import cache_folder


@pytest.fixture(scope="session", autouse=True)
def cache_home() -> Path:
    """The user's own feature cache, because extracting the features of all photos takes 5 to 10 minutes."""
    return cache_folder("features")


@pytest.fixture(scope="session")
def flower_photos() -> Path:
    """The folder of real photos. Without it these tests prove nothing, so they fail."""
    photos = os.environ.get("VGG_EDGE_PHOTOS")
    if not photos:
        pytest.fail(
            "VGG_EDGE_PHOTOS is not set; set it to the folder that holds the flowers' train/ and test/"
        )
    return Path(photos)
