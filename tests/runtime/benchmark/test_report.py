"""The table and the CSV, of results that the test makes up."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from runtime.benchmark.report import BenchRow, format_report, to_csv


def a_row(**changes: object) -> BenchRow:
    empty: dict[str, object] = dict.fromkeys(field.name for field in fields(BenchRow))
    values = {"cores": 2, "threads": 1, "n": 9, "median_ms": 2.0, "p95_ms": 3.0, "load_ms": 50.0}
    names = {"model": "colours", "file": "colours.onnx", "engine": "onnx 1"}
    return BenchRow(**{**empty, **values, **names, **changes})  # type: ignore[arg-type]


def test_only_the_first_row_is_marked_as_the_fastest() -> None:
    heading, _, columns, first, second = format_report([a_row(), a_row(threads=2)]).splitlines()[:5]
    assert heading.startswith("colours on ")
    assert first.split() == ["colours.onnx", "onnx", "1", "1", "9", "2.00", "3.00", "50", "fastest"]
    assert "fastest" not in second and columns.index("file") == first.index("colours.onnx")


def test_energy_has_a_column_only_if_it_is_reported() -> None:
    without = format_report([a_row()])
    assert "mJ" not in without and "energy: not reported" in without.splitlines()[-1]
    *_, columns, line = format_report([a_row(energy_mj=12.34)]).splitlines()
    assert columns.split()[-1] == "mJ" and line.split()[-2:] == ["12.3", "fastest"]


def test_columns_align_for_wide_characters_and_escapes() -> None:
    rows = [a_row(file="花花.onnx"), a_row(file="a\x1b[2J.onnx")]
    first, second = format_report(rows).splitlines()[3:5]
    assert first.index("onnx 1") + 2 == second.index("onnx 1")  # two characters of two columns each
    assert "\x1b" not in second


def test_csv_has_a_column_per_field_and_leaves_unreported_values_empty() -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv([a_row(peak_mb=12.5)])))
    assert list(row) == [field.name for field in fields(BenchRow)]
    assert (row["median_ms"], row["peak_mb"], row["energy_mj"]) == ("2.0", "12.5", "")


def test_no_name_of_a_model_starts_a_formula_or_breaks_the_csv() -> None:
    """Both names come from the model's author."""
    text = to_csv([a_row(model='=HYPERLINK("http://a/")', file="@a\udcff.onnx")])
    (row,) = csv.DictReader(io.StringIO(text.encode().decode()))
    assert (row["model"], row["file"]) == ('\'=HYPERLINK("http://a/")', "'@a\\udcff.onnx")
