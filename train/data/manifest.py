"""The files photos.csv and left_out.csv of a run: the data set that the run was trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from train.data.dataset import Dataset, LeftOut, Photo

PHOTOS_NAME, LEFT_OUT_NAME = "photos.csv", "left_out.csv"
# A file name on Linux may hold bytes that are not UTF-8. This error handler writes and reads them unchanged.
FILE_NAME_ERRORS = "surrogateescape"


def write_manifest(dataset: Dataset, folder: Path) -> None:
    """Write photos.csv (path, label, split, sha256) and left_out.csv (path, reason) into `folder`."""
    photos = ((photo.path, photo.label, photo.split, photo.sha256) for photo in dataset.photos)
    write_csv(folder / PHOTOS_NAME, [column.name for column in fields(Photo)], photos)
    left_out = ((item.path, item.reason) for item in dataset.left_out)
    write_csv(folder / LEFT_OUT_NAME, [column.name for column in fields(LeftOut)], left_out)


def read_manifest(folder: Path, root: Path, classes: tuple[str, ...], synthetic: bool = False) -> Dataset:
    """The data set that `write_manifest` wrote into `folder`; its photos are under `root`.

    Raises OSError, ValueError, TypeError or csv.Error if the files are missing or damaged.
    """
    with (folder / PHOTOS_NAME).open(newline="", encoding="utf-8", errors=FILE_NAME_ERRORS) as file:
        rows = list(csv.DictReader(file))
    if any(None in row.values() for row in rows):
        raise ValueError(f"a line of {PHOTOS_NAME} is incomplete")
    with (folder / LEFT_OUT_NAME).open(newline="", encoding="utf-8", errors=FILE_NAME_ERRORS) as file:
        left_out = tuple(LeftOut(**row) for row in csv.DictReader(file))
    return Dataset(root, classes, tuple(Photo(**row) for row in rows), left_out, synthetic)


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    r"""Write a CSV file with "\n" line ends. Any text reads back unchanged."""
    with file.open("w", newline="", encoding="utf-8", errors=FILE_NAME_ERRORS) as stream:
        for row in (columns, *rows):
            line = io.StringIO(newline="")
            # csv quotes a name that contains "\r" only if the line terminator contains it too.
            csv.writer(line, lineterminator="\r\n").writerow(row)
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")
