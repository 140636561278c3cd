"""Replace a whole folder: readers see either the old set of files or the new set.

Renaming onto a non-empty folder fails, so a swap has two steps: NAME → NAME.old, then new → NAME. Between the
steps NAME is missing, and readers (runtime/model_file) open NAME.old. After a crash between the steps, the
next swap restores NAME.
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


class OutputDirError(UserError):
    """A folder that cannot be replaced."""


def replace_dir(files: Mapping[str, bytes], folder: Path) -> None:
    """Replaces the contents of `folder` with these files, by name. After a failure the old contents remain.

    Raises OutputDirError when the folder holds other files than an export's, or cannot be written.
    """
    check_output_dir(folder)
    old = _old(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A random name: a killed export in another container may have left a folder with the same process id.
        with TemporaryDirectory(
            prefix=".export-", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            new = Path(temporary, "new")
            new.mkdir()  # with the default mode; only its owner can read `temporary`
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
        raise OutputDirError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing changed; "
            "free space there, or give another --out"
        ) from None
    finally:
        if not folder.exists() and old.exists():
            old.rename(folder)


def check_output_dir(folder: Path) -> None:
    """Raises OutputDirError when a swap would delete other files than an export's, or is not possible."""
    try:
        _check(folder)
    except OSError as error:  # the name is too long, or a parent folder may not be searched
        raise OutputDirError(f"{folder}: cannot be created ({error.strerror}); give another --out") from None


def _check(folder: Path) -> None:
    if folder.name in ("", "..") or folder.is_symlink():
        raise OutputDirError(f"{folder}: is not the name of a folder; give one such as --out models/flowers")
    for place in (folder, _old(folder)):
        with suppress(FileNotFoundError, NotADirectoryError):
            place.stat()  # raises, while `exists` hides the reason from Python 3.14 on
        if place.exists() and not place.is_dir():
            raise OutputDirError(f"{place}: is a file, not a folder; give another --out")
        if place.is_dir() and any(place.iterdir()) and not (place / INDEX_NAME).is_file():
            raise OutputDirError(
                f"{place}: holds files that are not an export's; give another --out, or empty it"
            )
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputDirError(f"{folder}: {parent} cannot be written; give another --out")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _sync(folder: Path) -> None:
    """Writes the folder's entries to disk. Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
