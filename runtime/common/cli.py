"""What all commands share: exit codes, a parser of flags, and the types of their values."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from runtime.common.errors import UserError
from runtime.common.terminal import print_error
from runtime.common.text import printable

EXIT_SOME_FAILED = 1  # some inputs; the others were processed
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
EXIT_BROKEN_PIPE = 141  # the same for SIGPIPE

SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def run_cli(run: Callable[[], int]) -> int:
    """Runs a command and returns its exit code: 2 after a UserError, 130 after Ctrl-C, 141 after `| head`."""
    _prepare_streams()
    try:
        code = run()
        sys.stdout.flush()  # here, where an error is reported; Python's own flush at exit prints a traceback
        return code
    except UserError as error:
        print_error(str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.filename is None:  # the disk that standard output goes to is full
            _discard_output()
        print_error(f"{error.filename or 'the output'}: {(error.strerror or str(error)).lower()}")
        return EXIT_USER_ERROR


def exit_process(code: int) -> NoReturn:
    """Ends the process without the interpreter's shutdown.

    The shutdown of an engine and numpy takes 40 ms, a sixth of classifying one photo, and waits for their
    threads. Nothing is lost: files are closed and both streams are flushed.
    """
    sys.stdout.flush()
    with suppress(OSError, ValueError):  # as print_info
        sys.stderr.flush()
    os._exit(code)


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed at the start: the next opened file would get its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (stays open)
    for stream in (sys.stdout, sys.stderr):
        # Names may be in any script, the terminal in any encoding. A test's streams may lack the method.
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _discard_output() -> None:
    """Drops unwritten output, which the interpreter would otherwise try to write again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ArgumentParser(argparse.ArgumentParser):
    """An argparse.ArgumentParser whose error messages are one printable line without passwords.

    A pattern of the shell may put any file name, with escape sequences for the terminal, into the arguments.
    """

    def error(self, message: str) -> NoReturn:
        from runtime.common.urls import hide_password

        super().error(printable(re.sub(r"[^\s'\"]+", lambda word: hide_password(word[0]), message)))


class VersionAction(argparse.Action):
    """--version: prints the version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.exit(message=f"{version_text()}\n")


def version_text() -> str:
    """Returns the project's name with the installed version."""
    from importlib.metadata import PackageNotFoundError, version  # late: slow to import, rarely needed

    try:
        return f"vgg-edge {version('vgg-edge')}"
    except PackageNotFoundError:
        return "vgg-edge, run from its source code"


def positive_int(text: str) -> int:
    """Parses a count of at least 1. Raises ArgumentTypeError."""
    with suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")


def path_name(text: str) -> Path:
    """Parses a path. Raises ArgumentTypeError when it is empty: Path("") would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def duration(text: str) -> float:
    """Parses a time such as "500ms", "1s", "2m" or "1h" into seconds. Raises ArgumentTypeError.

    A number without a unit means seconds.
    """
    unit = next((unit for unit in SECONDS_PER_UNIT if text.endswith(unit)), "")
    with suppress(ValueError):
        if 0 <= (number := float(text.removesuffix(unit))) < 1e6:
            return number * SECONDS_PER_UNIT.get(unit, 1.0)
    raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 500ms, 1s or 2m")


def percentage(text: str) -> float:
    """Parses a percentage such as "10%" or "10" into 0.1. Raises ArgumentTypeError unless it is below 100."""
    with suppress(ValueError):
        if 0 < (percent := float(text.strip().removesuffix("%"))) < 100:
            return percent / 100
    raise argparse.ArgumentTypeError(f"{text!r} is not a percentage above 0 and below 100, such as 10%")


def frames_or_duration(text: str) -> int | float:
    """Parses a number of frames (int), or a time in seconds (float). Raises ArgumentTypeError."""
    return int(text) if text.isdecimal() else duration(text)


def megabytes(text: str) -> float:
    """Parses a size in MB, 0 or more. Raises ArgumentTypeError."""
    with suppress(ValueError):
        if 0 <= (number := float(text)) < 1e9:  # NaN fails this comparison
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of megabytes")
