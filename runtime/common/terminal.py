"""What the commands print, and how a signal stops them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from runtime.common.text import printable


def print_info(line: str) -> None:
    """Prints one line on standard error, which keeps it apart from the results.

    A line that cannot be written is dropped: a full disk, or a log's reader that ended, stops no service.
    """
    with suppress(OSError, ValueError):
        print(printable(line), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    """Prints one line on standard error that starts with "error: "."""
    print_info(f"error: {text}")


def can_print(text: str) -> bool:
    """Whether standard output's encoding has all characters of the text."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def has_styles() -> bool:
    """Whether standard output is a terminal that shows bold and dim text."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Leaves the block when the process receives SIGTERM, which is how systemd stops a service."""

    class Stopped(BaseException):  # not an Exception: read_picture turns those into a PictureError
        pass

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Stopped:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Hides what native code writes to file descriptor 2 inside the block.

    TFLite and LiteRT print their delegates there and have no setting against it. An engine's failure is still
    reported, by its exception. For commands only: a program that imports the runtime keeps its own stderr.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
