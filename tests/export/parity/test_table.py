"""The table, its explanations, and the sentence that names the file to use."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from export.parity.gates import MIN_PHOTOS
from export.parity.result import FileKey
from export.parity.table import (
    column_explanations,
    confidence_note,
    parity_csv,
    parity_report,
    recommendation,
    table,
    upper_bound,
)
from tests.export.parity.results import RESULT

NAMES = {FileKey("tflite", "float32"): "mine_float32.tflite", FileKey("tflite", "int8"): "mine_int8.tflite"}
FLOAT32 = replace(RESULT, precision="float32")


def test_upper_bound_matches_closed_form_and_published_value() -> None:
    """The closed form for 0 of n, and Clopper and Pearson's bound for 1 of 10."""
    assert upper_bound(40, 0) == pytest.approx(1 - 0.05 ** (1 / 40))
    assert upper_bound(10, 1) == pytest.approx(0.3942, abs=1e-4)
    assert upper_bound(1000, 3) < upper_bound(100, 3)
    assert upper_bound(5, 5) == 1


def test_the_verdict_column_says_passed_failed_or_too_few_photos() -> None:
    assert table([RESULT]).endswith("passed")
    assert table([replace(RESULT, max_dp=0.5)]).endswith("failed")
    assert table([replace(RESULT, n=34)]).endswith("too few photos")


def test_optional_columns_appear_only_with_figures() -> None:
    plain = table([RESULT])
    assert not any(name in plain for name in ("unknown", "features", "uncompressed"))
    crashed = replace(RESULT, error="crash")  # has none of these figures
    assert "98.0%" in table([replace(RESULT, known_disagreements=10), crashed])
    shown = table([replace(RESULT, max_dfeatures=0.034), crashed])
    assert "|Δfeatures|" in shown and "3.4%" in shown
    shown = table([replace(RESULT, uncompressed_disagreements=25), crashed])
    assert "uncompressed" in shown and "95.0%" in shown


def test_files_on_fewer_photos_have_a_column_of_photos_and_prove_less() -> None:
    few = replace(FLOAT32, n=60, reference_top1=0.8)
    assert "photos" not in table([RESULT, FLOAT32]).splitlines()[0]
    header, first, second = table([few, RESULT]).splitlines()
    column = header.split().index("photos") + 1  # an engine has two words
    assert [first.split()[column], second.split()[column]] == ["60", "500"]
    explanations = dict(column_explanations([few, RESULT], 2))
    assert "photos" in explanations and "80.0% of 60, 90.0% of 500" in explanations["top-1"]
    assert "of 500 photos" in confidence_note([few, RESULT])
    assert confidence_note([few, replace(RESULT, error="crash")]).startswith("None of 60 photos")
    assert recommendation([few, RESULT], NAMES).endswith("all 500 photos.")


def test_every_shown_figure_has_an_explanation() -> None:
    full = replace(RESULT, known_disagreements=0, uncompressed_disagreements=0)
    explained = {name for name, _ in column_explanations([full], threads=2)}
    header = table([full]).splitlines()[0]
    for name in (
        "top-1",
        "same answer",
        "mean |Δp|",
        "same unknown",
        "same as uncompressed",
        "ms",
        "verdict",
    ):
        assert name in explained and name in header
    assert "same unknown" not in dict(column_explanations([RESULT], threads=2))
    assert "1 thread " in dict(column_explanations([RESULT], threads=1))["ms"]
    assert "2 threads " in dict(column_explanations([RESULT], threads=2))["ms"]


def test_confidence_note_says_how_little_few_photos_prove() -> None:
    few = confidence_note([replace(RESULT, n=40)])
    assert "40" in few and "7.2%" in few and str(MIN_PHOTOS) in few
    assert str(MIN_PHOTOS) not in confidence_note([RESULT])
    assert str(MIN_PHOTOS) not in confidence_note([replace(FLOAT32, n=60)])  # its limits are for every photo


def test_the_report_ends_with_the_file_to_use() -> None:
    few = [replace(FLOAT32, n=34), replace(RESULT, n=34)]
    last = parity_report(few, NAMES, threads=2).splitlines()[-1]
    assert last == "Use mine_int8.tflite: same answer as the trained model on all 34 photos."


@pytest.mark.parametrize(
    ("int8", "expected"),
    [
        ({"n": 34, "disagreements": 1}, "Use mine_int8.tflite: .* 33 of 34 photos"),
        ({"n": 34, "disagreements": 2}, "Use mine_float32.tflite: .* all 34 photos"),
    ],
)
def test_a_failed_file_is_not_recommended(int8: dict[str, int], expected: str) -> None:
    import re

    assert re.search(expected, recommendation([replace(FLOAT32, n=34), replace(RESULT, **int8)], NAMES))


@pytest.mark.parametrize(("disagreements", "photos"), [(0, "the 1 photo."), (1, "0 of 1 photos.")])
def test_the_sentence_about_one_photo_says_whether_its_answer_is_the_same(
    disagreements: int, photos: str
) -> None:
    one = replace(RESULT, n=1, disagreements=disagreements)
    assert recommendation([one], NAMES).endswith(f"on {photos}")


def test_nothing_is_recommended_when_every_file_failed() -> None:
    assert recommendation([replace(RESULT, max_dp=1)], NAMES) == ""


def test_only_a_written_file_is_recommended() -> None:
    names = {FileKey("tflite", "float32"): "mine_float32.tflite"}
    assert "mine_float32.tflite" in recommendation([FLOAT32, RESULT], names)


def test_csv_has_the_figures_and_the_broken_bounds() -> None:
    (row,) = csv.DictReader(io.StringIO(parity_csv([replace(RESULT, disagreements=25)])))
    assert (row["format"], row["n"], float(row["agreement"])) == ("tflite", "500", 0.95)
    assert row["verdict"].startswith("failed: ") and "95.0%" in row["verdict"]
    (row,) = csv.DictReader(io.StringIO(parity_csv([RESULT])))
    assert row["verdict"] == "passed"
