"""The estimate names the photos of each precision, and the quicker options."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from export.estimate import print_estimate
from export.parity.photo_counts import PhotoCounts
from export.pipeline import file_keys
from export.time_left import Workload
from runtime.model_file.formats import PRECISIONS


@pytest.mark.parametrize(
    ("precisions", "counts", "expected"),
    [
        (["float32", "int8"], PhotoCounts(250, 60), "photos: 60 for float32; 250 for int8 (an"),
        (["float32"], PhotoCounts(250, 60), "photos: 60 for float32 (an"),
        (["float32", "int8"], PhotoCounts(60, 60), None),
    ],
)
def test_the_photos_of_each_precision_are_printed_if_they_differ(
    precisions: Sequence[str], counts: PhotoCounts, expected: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected is None or expected in estimate(precisions, counts, capsys)
    assert expected is not None or "photos:" not in estimate(precisions, counts, capsys)


def test_each_number_of_photos_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    printed = estimate(PRECISIONS, PhotoCounts(250, 60), capsys)
    assert printed.count(" 60 for") == printed.count(" 250 for") == 1


def estimate(precisions: Sequence[str], counts: PhotoCounts, capsys: pytest.CaptureFixture[str]) -> str:
    engines = ("litert", "onnx")
    print_estimate(
        Workload(0.1, 15_000_000, 18, "gptq", 60, 200, 50, counts, engines, 2), file_keys(precisions, engines)
    )
    return capsys.readouterr().out
