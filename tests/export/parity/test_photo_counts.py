"""Uncompressed runs are compared on fewer photos, but never on too few for a limit."""

from __future__ import annotations

import pytest

from export.parity.gates import GATES, MIN_PHOTOS
from export.parity.photo_counts import PhotoCounts, photo_counts


def test_an_uncompressed_run_is_compared_on_fewer_photos() -> None:
    counts = photo_counts(500, None, compressed=False)
    assert {precision: counts.of(precision) for precision in GATES} == {
        "float32": 60,
        "float16": 60,
        "dynamic": MIN_PHOTOS,
        "float16 arithmetic": MIN_PHOTOS,
        "int8": MIN_PHOTOS,
        "full_int8": MIN_PHOTOS,
    }


@pytest.mark.parametrize(
    ("available", "requested", "compressed", "expected"),
    [
        (500, None, True, PhotoCounts(500, 500)),
        (500, 40, True, PhotoCounts(40, 40)),
        (500, 400, False, PhotoCounts(400, 400)),
        (30, None, False, PhotoCounts(30, 30)),
        (100, None, False, PhotoCounts(100, 60)),
        (100, 1000, False, PhotoCounts(100, 100)),
    ],
)
def test_a_requested_number_applies_to_all_files(
    available: int, requested: int | None, compressed: bool, expected: PhotoCounts
) -> None:
    assert photo_counts(available, requested, compressed=compressed) == expected
