"""Swap a whole folder: who reads it sees the old set of files or the new set at every instant.

A folder that is not empty cannot be renamed onto, so it goes in two steps: NAME → NAME.old, new → NAME.
Between the two there is no NAME, and readers (runtime/model.py) take NAME.old. A crash between them is mended
by the next swap.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from runtime.common.errors import UserError
from runtime.model_file.files import INDEX_NAME


class FolderError(UserError):
    """A folder that cannot be replaced."""


def replace_dir(files: Mapping[str, bytes], folder: Path) -> None:
    """Makes `folder` hold these files, by name, and nothing else. On any failure it holds what it held.

    Raises FolderError: in use for something else, or not to be written.
    """
    check_output_dir(folder)
    old = _old(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One of its own, whatever a killed export left: in containers, processes have the same numbers.
        with TemporaryDirectory(prefix=".export-", dir=folder.parent, ignore_cleanup_errors=True) as own:
            new = Path(own, "new")
            new.mkdir()  # with the usual mode, which `own` has not
            for name, data in files.items():
                with (new / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            _sync(new)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            new.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FolderError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing changed"
        ) from None
    finally:
        if not folder.exists() and old.exists():
            old.rename(folder)


def check_output_dir(folder: Path) -> None:
    """Raises FolderError when a swap would delete what is not an export's, or cannot be made there."""
    try:
        _check(folder)
    except OSError as error:  # too long a name, or a folder above it that may not be searched
        raise FolderError(f"{folder}: cannot be made there ({error.strerror}); give another --out") from None


def _check(folder: Path) -> None:
    if folder.name in ("", "..") or folder.is_symlink():
        raise FolderError(f"{folder}: --out takes a folder of its own, such as models/flowers")
    for place in (folder, _old(folder)):
        with suppress(FileNotFoundError, NotADirectoryError):
            place.stat()  # from Python 3.14 on, `exists` does not tell what is wrong
        if place.exists() and not place.is_dir():
            raise FolderError(f"{place}: is a file, in the way of a folder; give another --out")
        if place.is_dir() and any(place.iterdir()) and not (place / INDEX_NAME).is_file():
            raise FolderError(f"{place}: holds other files than an export's; give another --out, or empty it")
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise FolderError(f"{folder}: {parent} cannot be written; give another --out")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _sync(folder: Path) -> None:
    """Makes the folder's own entries durable; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
