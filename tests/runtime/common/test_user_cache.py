"""The cache and the state folder of each system."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.common.user_cache import cache_home, state_home


@pytest.mark.parametrize(
    ("home", "variable", "system", "place"),
    [
        (cache_home, "XDG_CACHE_HOME", "linux", ".cache"),
        (cache_home, "XDG_CACHE_HOME", "darwin", "Library/Caches"),
        (cache_home, "XDG_CACHE_HOME", "win32", "AppData/Local"),
        (state_home, "XDG_STATE_HOME", "linux", ".local/state"),
        (state_home, "XDG_STATE_HOME", "darwin", "Library/Application Support"),
        (state_home, "XDG_STATE_HOME", "win32", "AppData/Local"),
    ],
)
def test_each_system_has_its_own_folder(
    home: Callable[[], Path],
    variable: str,
    system: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert home() == tmp_path / place / "vgg-edge"
    monkeypatch.setenv(variable, "/elsewhere")
    assert home() == Path("/elsewhere/vgg-edge")
