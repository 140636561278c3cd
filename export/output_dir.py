"""Replace a whole folder: readers see either the old set of files or the new set.

Renaming onto a non-empty folder fails, so a swap has two steps: NAME → NAME.old, then new → NAME. Between the
steps NAME is missing, and readers (runtime/model_file) open NAME.old. After a crash between the steps, the
next swap restores NAME.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from runtime.common.atomic import UNFINISHED_AFTER
from runtime.common.errors import UserError
from runtime.common.file_lock import exclusive_lock
from runtime.common.text import printable
from runtime.model_file.files import INDEX_NAME, MAX_JSON_BYTES, SIGNATURE_NAME, read_bytes
from runtime.model_file.index import read_index
from train.run_writer import SYSTEM_FILES

TARGETS_NAME = "targets.json"
CARD_NAME, PARITY_NAME = "README.md", "parity.csv"
_TEMPORARY = ".export-"  # how the names of the folders begin in which an export prepares files


class OutputDirError(UserError):
    """A folder that cannot be replaced."""


@contextmanager
def lock_output_dir(folder: Path) -> Iterator[None]:
    """Keeps other exports from `folder`, so that two exports never get the same release.

    Raises OutputDirError when another export holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder.with_name(f".{folder.name}.lock")))
        except BlockingIOError:
            raise OutputDirError(
                f"{folder}: another export is writing it; wait for it, or give another --out"
            ) from None
        except (OSError, ValueError):  # no parent folder yet, or check_output_dir says why it is unusable
            pass
        yield


def replace_dir(files: Mapping[str, bytes], folder: Path) -> None:
    """Replaces the contents of `folder` with these files, by name. After a failure the old contents remain.

    Raises OutputDirError when files would be lost that no export wrote, or the folder cannot be written.
    """
    check_output_dir(folder, files)
    old, swapped = replaced_dir(folder), False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        if old.exists() and not folder.exists():
            old.rename(folder)
        # A random name: a killed export in another container may have left a folder with the same process id.
        with TemporaryDirectory(
            prefix=_TEMPORARY, dir=folder.parent, ignore_cleanup_errors=True
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
                folder.rename(old)
            new.rename(folder)
            swapped = True
            with suppress(OSError):  # the new files are in place
                # Deleted with `temporary`, because a NAME.old that a crash leaves stops the next export.
                old.rename(Path(temporary, "old"))
            with suppress(OSError):
                _sync(folder.parent)
    except KeyboardInterrupt:
        if not swapped:  # afterwards, only the old files remain to be deleted
            raise
    except OSError as error:
        raise OutputDirError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing changed; "
            "free space there, or give another --out"
        ) from None
    finally:
        if not folder.exists() and old.exists():
            old.rename(folder)


def check_output_dir(folder: Path, written: Collection[str] = ()) -> None:
    """Raises OutputDirError when a swap would delete files that no export wrote, or is not possible.

    Files named in `written` do not count: the new set contains them.
    """
    try:
        _check(folder, set(written))
    except OSError as error:  # the name is too long, or a parent folder may not be searched
        raise OutputDirError(f"{folder}: cannot be created ({error.strerror}); give another --out") from None


def replaced_dir(folder: Path) -> Path:
    """NAME.old: where the old set of files is between the two steps of a swap."""
    return folder.with_name(f"{folder.name}.old")


def listed_files(path: Path, data: bytes | None) -> dict[str, str]:
    """The sha256 of each compiled file, by name, in the bytes of the targets.json at `path`; nothing without
    one.

    Raises UserError when it is damaged.
    """
    try:
        lists = [target["files"] for target in json.loads(data or b"[]")]
        return {str(name): str(sha256) for files in lists for name, sha256 in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: is damaged; export again") from None


def _check(folder: Path, written: set[str]) -> None:
    if folder.name in ("", ".."):
        raise OutputDirError(f"{folder}: is not the name of a folder; give one such as --out models/flowers")
    if folder.is_symlink():
        raise OutputDirError(f"{folder}: is a symbolic link; give the folder that it points to as --out")
    if os.path.ismount(folder):  # it cannot be renamed
        raise OutputDirError(f"{folder}: is a mounted file system; give a folder inside it as --out")
    old = replaced_dir(folder)
    for place in (folder, old):
        with suppress(FileNotFoundError, NotADirectoryError):
            place.stat()  # raises, while `exists` hides the reason from Python 3.14 on
        if place.exists() and not place.is_dir():
            raise OutputDirError(f"{place}: is a file, not a folder; give another --out")
        if place.is_dir():
            _check_contents(place, written)
    if folder.exists() and old.exists():
        raise OutputDirError(
            f"{old}: an export to {folder} would delete it; remove or rename it, or give another --out"
        )
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputDirError(f"{folder}: {parent} cannot be written; give another --out")


def _check_contents(folder: Path, written: set[str]) -> None:
    """Raises OutputDirError when the folder holds files that no export wrote, besides `written`."""
    # On an exFAT disk, macOS stores the attributes of NAME in ._NAME.
    names = {path.name.removeprefix("._") for path in folder.iterdir()} - SYSTEM_FILES
    if names and not (folder / INDEX_NAME).is_file():
        raise OutputDirError(
            f"{folder}: holds files that are not an export's; give another --out, or empty it"
        )
    if not names <= written and (others := sorted(names - written - _exported_names(folder))):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise OutputDirError(
            f"{folder}: holds {printable(others[0])}{more}, which an export would delete; move it elsewhere, "
            "or give another --out"
        )


def _exported_names(folder: Path) -> set[str]:
    """The names that an export and its signature have in `folder`, by the lists there."""
    targets = folder / TARGETS_NAME
    try:
        indexed = {file.file for file in read_index(folder).files}
        compiled = listed_files(targets, read_bytes(targets, MAX_JSON_BYTES) if targets.exists() else None)
    except UserError as error:
        raise OutputDirError(f"{error}; remove the folder, or give another --out") from None
    return {*indexed, *compiled, INDEX_NAME, CARD_NAME, PARITY_NAME, SIGNATURE_NAME, TARGETS_NAME}


def _remove_leftovers(parent: Path) -> None:
    """Deletes folders of killed exports in `parent`; young folders stay, because an export may be writing."""
    for leftover in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > UNFINISHED_AFTER:
                shutil.rmtree(leftover)


def _sync(folder: Path) -> None:
    """Writes the folder's entries to disk. Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
