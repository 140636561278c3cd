"""A Raspberry Pi Zero 2 has 512 MB; the camera loop is measured by benchmarks/memory.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import ENGINES, MAX_MB, draw_photos, peak_mb


@pytest.mark.parametrize("engine", ENGINES)
def test_the_released_model_takes_200_mb_at_most(engine: str, tmp_path: Path) -> None:
    photos = draw_photos(tmp_path, 3)
    peak, answers = peak_mb(engine, *map(str, photos))
    assert answers == 3
    assert 20 < peak <= MAX_MB
