"""The files photos.csv and left_out.csv of a run: the data set that the run was trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

from runtime.common.text import printable
from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import Dataset, LeftOut, Photo
from train.data.negatives import default_negatives_folder

PHOTOS_NAME, LEFT_OUT_NAME = "photos.csv", "left_out.csv"
# A file name on Linux may hold bytes that are not UTF-8. This error handler writes and reads them unchanged.
FILE_NAME_ERRORS = "surrogateescape"
# How the path of a photo begins that is not under the data set's root. No path under the root begins like
# this: a negative there is in the folder none/, train/, val/ or test/, and no path holds "//".
DEFAULT_PREFIX, OUTSIDE_PREFIX, ADDED_PREFIX = "default:", "--none:", "--add://"
# The folders that --none and --add named, in a packed run.
UNKNOWN_FOLDER, UNKNOWN_ADDED = Path("/photos of none of the classes"), Path("/added photos")


def write_manifest(dataset: Dataset, folder: Path) -> None:
    """Write photos.csv (path, label, split, sha256) and left_out.csv (path, reason) into `folder`.

    Negatives follow the photos. The path of a photo outside the root is relative to `dataset.added_root`, to
    the default set's folder or to `dataset.negatives_root`, after a prefix, so that the file does not depend
    on the machine.
    """
    folders = {
        OUTSIDE_PREFIX: dataset.negatives_root,  # may be inside the folder of --add
        ADDED_PREFIX: dataset.added_root,
        DEFAULT_PREFIX: default_negatives_folder(),
    }
    photos = (
        (_portable_path(photo.path, folders), photo.label, photo.split, photo.sha256)
        for photo in chain(dataset.photos, dataset.negatives)
    )
    write_csv(folder / PHOTOS_NAME, [column.name for column in fields(Photo)], photos)
    left_out = (
        (_portable_path(item.path, folders), _portable_reason(item.reason, folders))
        for item in dataset.left_out
    )
    write_csv(folder / LEFT_OUT_NAME, [column.name for column in fields(LeftOut)], left_out)


def read_manifest(
    folder: Path,
    root: Path,
    classes: tuple[str, ...],
    synthetic: bool = False,
    negatives_root: Path | None = None,
    added_root: Path | None = None,
) -> Dataset:
    """The data set that `write_manifest` wrote into `folder`; its photos are under `root`, negatives of
    another folder under `negatives_root`, and the photos of --add under `added_root`.

    Raises OSError, ValueError, TypeError or csv.Error if the files are missing or damaged.
    """
    with (folder / PHOTOS_NAME).open(newline="", encoding="utf-8", errors=FILE_NAME_ERRORS) as file:
        rows = list(csv.DictReader(file))
    if any(None in row.values() for row in rows):
        raise ValueError(f"a line of {PHOTOS_NAME} is incomplete")
    with (folder / LEFT_OUT_NAME).open(newline="", encoding="utf-8", errors=FILE_NAME_ERRORS) as file:
        left_out = [LeftOut(**row) for row in csv.DictReader(file)]
    photos = [Photo(**row) for row in rows]
    if any(photo.path.startswith(ADDED_PREFIX) for photo in photos):
        added_root = added_root or UNKNOWN_ADDED
    added = {ADDED_PREFIX: added_root or UNKNOWN_ADDED}
    folders = {
        **added,
        DEFAULT_PREFIX: default_negatives_folder(),
        OUTSIDE_PREFIX: negatives_root or UNKNOWN_FOLDER,
    }
    return Dataset(
        root,
        classes,
        tuple(
            replace(photo, path=_full_path(photo.path, added))
            for photo in photos
            if photo.label != NONE_LABEL
        ),
        tuple(
            LeftOut(_full_path(item.path, folders), _full_reason(item.reason, folders)) for item in left_out
        ),
        synthetic,
        tuple(
            replace(photo, path=_full_path(photo.path, folders))
            for photo in photos
            if photo.label == NONE_LABEL
        ),
        negatives_root,
        added_root,
    )


def _portable_path(path: str, folders: Mapping[str, Path | None]) -> str:
    """A path under one of the folders as its prefix and the path relative to it; others unchanged."""
    for prefix, folder in folders.items():
        if folder is not None and Path(path).is_relative_to(folder):
            return prefix + Path(path).relative_to(folder).as_posix()
    return path


def _portable_reason(reason: str, folders: Mapping[str, Path | None]) -> str:
    """A reason, which may name another photo, with the same prefixes."""
    for prefix, folder in folders.items():
        if folder is not None:
            reason = reason.replace(printable(f"{folder.as_posix()}/"), prefix)
    return reason


def _full_reason(reason: str, folders: Mapping[str, Path]) -> str:
    for prefix, folder in folders.items():
        reason = reason.replace(prefix, printable(f"{folder.as_posix()}/"))
    return reason


def _full_path(path: str, folders: Mapping[str, Path]) -> str:
    for prefix, folder in folders.items():
        if path.startswith(prefix):
            return (folder / path.removeprefix(prefix)).as_posix()
    return path


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    r"""Write a CSV file with "\n" line ends. Any text reads back unchanged."""
    with file.open("w", newline="", encoding="utf-8", errors=FILE_NAME_ERRORS) as stream:
        for row in (columns, *rows):
            line = io.StringIO(newline="")
            # csv quotes a name that contains "\r" only if the line terminator contains it too.
            csv.writer(line, lineterminator="\r\n").writerow(row)
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")
