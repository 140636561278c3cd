"""Atomic file writes: a file is complete, or it does not exist."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runtime.common.errors import WriteError

UNFINISHED_AFTER = 600.0  # seconds; no file of this project takes as long to write


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` when the block ends, after it reached the disk.

    A symbolic link is kept, and the file that it points to is replaced. Raises OSError, also where `path`
    exists and is not a regular file: replacing a device would remove it from /dev.
    """
    path = Path(os.path.realpath(path))
    if os.path.lexists(path) and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    with _partial_file(path) as (partial, file):
        yield file
        _close_on_disk(file)
        partial.replace(path)


@contextmanager
def atomic_create(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `path` when the block ends, after it reached the disk.

    Raises FileExistsError, without a change, where `path` exists by then. Raises OSError.
    """
    with _partial_file(path) as (partial, file):
        yield file
        _close_on_disk(file)
        try:
            os.link(partial, path)
        except (FileExistsError, FileNotFoundError):  # FileNotFoundError: someone deleted the temporary file
            raise
        except OSError:  # a file system without links, such as that of a memory card
            path.open("xb").close()  # reserves the name
            try:
                partial.replace(path)
            except OSError:
                path.unlink(missing_ok=True)
                raise


@contextmanager
def reported_writes(path: Path, flag: str) -> Iterator[None]:
    """Turns an OSError of the block into a WriteError, which names the flag for another place."""
    try:
        yield
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise WriteError(f"{path}: {reason}: {flag} chooses another place") from None


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Deletes the temporary files that killed processes left for files that match `pattern`. Raises OSError.

    Young files stay: another process may be writing them.
    """
    for partial in folder.glob(pattern):
        with suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > UNFINISHED_AFTER:
                partial.unlink()


@contextmanager
def _partial_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Gives a new file beside `path`, and removes it at the end."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")  # unique among threads too
    with partial.open("xb") as file:
        try:
            yield partial, file
        finally:
            file.close()  # Windows removes no open file
            partial.unlink(missing_ok=True)


def _close_on_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
