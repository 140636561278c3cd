"""Opens files of folders that other programs may write."""

import errno
import os
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG

LEASE_TIMEOUT = 5.0  # seconds


def open_regular(path: Path) -> BufferedReader:
    """Returns a regular file, opened to read. Raises OSError, also for anything else, such as a pipe.

    The opened file is checked, because a path may name another file a moment after a check of the path.
    """
    file = _open_without_lease(path)
    if not S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def _open_without_lease(path: Path) -> BufferedReader:
    """Opens a path. Waits for a file server, such as of NFS, whose client may still change the file."""
    until = time.monotonic() + LEASE_TIMEOUT
    while time.monotonic() < until:
        with suppress(BlockingIOError):  # by this, the kernel has asked the file server to end its lease
            return open(path, "rb", opener=_open_without_waiting)
        time.sleep(0.02)
    return open(path, "rb", opener=_open_without_waiting)


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a path; a pipe too, without waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no named pipes in folders
