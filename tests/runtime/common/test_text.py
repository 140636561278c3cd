from __future__ import annotations

from runtime.common.text import align_columns, pluralize


def test_one_is_singular_and_other_counts_are_plural() -> None:
    assert [pluralize(count, "photo") for count in (0, 1, 2)] == ["0 photos", "1 photo", "2 photos"]


def test_the_columns_of_a_table_align_to_the_left_or_right() -> None:
    rows = [("label", "n", ""), ("花", "12", "best"), ("daisy", "3", "")]
    assert align_columns(rows) == ["label  n", "花     12  best", "daisy  3"]
    assert align_columns(rows, left=("label", "")) == ["label   n", "花     12  best", "daisy   3"]
