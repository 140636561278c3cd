from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.metrics import compute_metrics
from train.report.charts import draw_confusion, draw_curves, shorten


@pytest.mark.parametrize(
    "classes", [("$x_{ costs $5", "薔薇", 'it\'s "a"'), tuple(f"class {i}" for i in range(41))]
)
def test_the_confusion_matrix_of_any_class_names_is_bounded_in_size(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    labels = np.arange(len(classes))
    found = compute_metrics(np.eye(len(classes)), labels, classes)
    draw_confusion({"val": found, "test": found}, classes, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 2 * 26 * 130 + 1 and np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("name", ["a long class name of several words ", "薔薇の花"])
@pytest.mark.filterwarnings("error", "ignore:Glyph")
def test_long_class_names_leave_room_for_the_matrix(name: str, tmp_path: Path) -> None:
    classes = (40 * name, name + "2", "roses")
    found = compute_metrics(np.eye(3), np.arange(3), classes)
    draw_confusion({"val": found, "test": found}, classes, tmp_path / "confusion.png")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("roses", "roses"), ("a" * 24, "a" * 24), (12 * "a" + 13 * "b", f"{11 * 'a'}…{11 * 'b'}")],
)
def test_a_long_name_keeps_its_start_and_end(name: str, shown: str) -> None:
    assert shorten(name) == shown


def test_charts_without_metrics_are_written(tmp_path: Path) -> None:
    """No photos to validate and test on, and Ctrl-C in the first epoch."""
    draw_confusion({"val": None, "test": None}, ("a", "b"), tmp_path / "confusion.png")
    draw_curves([], tmp_path / "curves.png")
    assert (tmp_path / "confusion.png").exists() and (tmp_path / "curves.png").exists()
