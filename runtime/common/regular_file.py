"""Opens files of folders that other programs may write."""

import errno
import os
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG


def open_regular(path: Path) -> BufferedReader:
    """Returns a regular file, opened to read. Raises OSError, also for anything else, such as a pipe.

    The opened file is checked, because a path may name another file a moment after a check of the path.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (the caller closes it)
    if not S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a path; a pipe too, without waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no named pipes in folders
