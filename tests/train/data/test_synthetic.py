from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import synthetic
from train.data.find_photos import find_photos
from train.data.synthetic import FLOWERS, draw_flower, draw_flowers


def test_the_same_seed_draws_the_same_picture() -> None:
    for name in FLOWERS:
        one, same, other = draw_flower(name, 1), draw_flower(name, 1), draw_flower(name, 1, seed=1)
        assert one.tobytes() == same.tobytes()
        assert one.size != other.size or one.tobytes() != other.tobytes()


def test_pictures_of_a_flower_differ() -> None:
    means = [np.asarray(draw_flower("roses", number)).mean(axis=(0, 1)) for number in range(5)]
    assert np.ptp(means, axis=0).min() > 10


def test_two_commands_may_draw_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_by_both(name: str, number: int, seed: int) -> Image.Image:
        (tmp_path / "drawn" / "daisy").mkdir(parents=True, exist_ok=True)  # the other command is done
        return draw_flower(name, number, seed)

    monkeypatch.setattr(synthetic, "draw_flower", draw_by_both)
    assert draw_flowers(tmp_path / "drawn", 1) == tmp_path / "drawn"
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_a_drawn_folder_is_a_synthetic_data_set(tmp_path: Path) -> None:
    dataset = find_photos(draw_flowers(tmp_path / "drawn", 2))
    assert dataset.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert len(dataset.photos) == 10
    assert dataset.synthetic
    assert not dataset.left_out
