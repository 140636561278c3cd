"""Runs on the real photos, made once. VGG_EDGE_PHOTOS names the folder that holds their train/ and test/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train.cache import cache_folder


@pytest.fixture(scope="session", autouse=True)
def cache_home() -> Path:
    """Here the user's own cache is used: 4,000 photos through the base take a quarter of an hour."""
    return cache_folder("features")


@pytest.fixture(scope="session")
def flower_photos() -> Path:
    """The folder of real photos; without it these gates prove nothing, so they fail."""
    photos = os.environ.get("VGG_EDGE_PHOTOS")
    if not photos:
        pytest.fail("VGG_EDGE_PHOTOS is not set: give it the folder that holds the flowers' train/ and test/")
    return Path(photos)


@pytest.fixture(scope="session")
def flowers_run(flower_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the default recipe on the real photos."""
    return _trained(flower_photos, tmp_path_factory, "pooled")


@pytest.fixture(scope="session")
def article_run(flowers_run: Path, flower_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the article's recipe, from the features that `flowers_run` left in the cache."""
    return _trained(flower_photos, tmp_path_factory, "article")


def _trained(photos: Path, tmp_path_factory: pytest.TempPathFactory, recipe: str) -> Path:
    from train.__main__ import main

    out = tmp_path_factory.mktemp("runs") / recipe
    assert main([str(photos), "--recipe", recipe, "--out", str(out)]) == 0
    return out
