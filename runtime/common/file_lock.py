"""A lock that one process at a time holds. The system releases it when the process ends or is killed."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.01  # between two attempts to get a lock

# What a file system without locks answers, such as some network folders.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def exclusive_lock(path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path`, which is created, and removed at the end.

    Raises BlockingIOError when another process holds it for more than `wait` seconds, OSError when the file
    cannot be created. On a file system without locks, nothing is locked.
    """
    file = _wait_for_lock(path, time.monotonic() + wait)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove an open file; an unlocked leftover does no harm
            path.unlink()
        os.close(file)


def _wait_for_lock(path: Path, deadline: float) -> int:
    while True:
        try:
            return _open_locked(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_SECONDS)


def _open_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(file)
            if _is_at(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder removed it after it was opened here


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock(file: int) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK, errno.EWOULDBLOCK):
            raise BlockingIOError(errno.EWOULDBLOCK, "In use by another process") from None
        if error.errno not in _UNSUPPORTED:
            raise
