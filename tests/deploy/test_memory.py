"""Peak memory with photos. benchmarks/memory.py also measures the camera loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import MAX_MB, draw_photos, peak_mb


@pytest.mark.parametrize("engine", ["litert", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_released_model_needs_200_mb_at_most(engine: str, tmp_path: Path) -> None:
    """A Raspberry Pi Zero 2 has 512 MB."""
    peak, answers = peak_mb(engine, *map(str, draw_photos(tmp_path, 3)))
    assert answers == 3
    assert 20 < peak <= MAX_MB
