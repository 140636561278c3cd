"""The number of files that the service may open, each connection being one of them."""

import errno
import time
from asyncio import AbstractEventLoop
from contextlib import suppress
from typing import Any

from runtime.common.terminal import print_error

WANTED_FILES = 4096
FILES_OF_SERVICE = 64  # without connections: the model, pictures, and pipes of the processes that decode
MIN_CONNECTIONS = 4
REPORT_INTERVAL = 60.0  # seconds


def raise_file_limit() -> None:
    """Raises the number of files that this process may open, which is 256 on macOS, as far as it may."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no limit
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit

        soft, hard = getrlimit(RLIMIT_NOFILE)
        wanted = WANTED_FILES if hard == RLIM_INFINITY else min(hard, WANTED_FILES)
        if soft != RLIM_INFINITY and soft < wanted:
            setrlimit(RLIMIT_NOFILE, (wanted, hard))


def connections_within_limit(wanted: int) -> int:
    """How many of the wanted connections leave the service the files that it needs."""
    with suppress(ImportError, OSError):
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

        if (limit := getrlimit(RLIMIT_NOFILE)[0]) != RLIM_INFINITY:
            return min(wanted, max(MIN_CONNECTIONS, limit - FILES_OF_SERVICE))
    return wanted


class FileLimitReporter:
    """An exception handler for the event loop: a line per minute, not a traceback per refused connection."""

    def __init__(self) -> None:
        self._next_report = 0.0

    def __call__(self, loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif (now := time.monotonic()) >= self._next_report:
            self._next_report = now + REPORT_INTERVAL
            print_error(
                "too many open files, new connections wait: raise the limit, such as `ulimit -n 1024`"
            )
