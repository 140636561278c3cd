"""Reads the parity table of an exported folder."""

from __future__ import annotations

import csv
from pathlib import Path

from export.parity.result import FileKey
from export.parity.runner import file_engine_pairs
from runtime.inference.engines import engine_name
from runtime.model_file.index import read_index


def parity_of_all_pairs(folder: Path, expected: int) -> list[dict[str, str]]:
    """The rows of parity.csv, after a check that each of the expected number of files ran in every engine."""
    with (folder / "parity.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = [FileKey(file.format, file.precision) for file in read_index(folder).files]
    assert len(files) == expected
    tested = {((row["format"], row["precision"]), engine_name(row["engine"])) for row in rows}
    assert tested == set(file_engine_pairs(files))
    return rows
