"""How the commands write to a terminal, or to whatever stands in its place."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from runtime.common.errors import UserError
from runtime.model_file.model import JOINERS

if TYPE_CHECKING:
    from runtime.classify import Prediction


def run_cli(run: Callable[[], int]) -> int:
    """Runs a command. Its exit code: 2 after a UserError's line, 130 after Ctrl-C, 141 without a reader."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # started with it closed: what is opened next would get its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (it stays open)
    for stream in (sys.stdout, sys.stderr):
        # A name in any script, on a terminal of any encoding. The streams of a test may not know how.
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return run()
    except UserError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        _drop_what_is_left()
        return 141
    except OSError as error:
        if error.filename is None:  # the disk that the output goes to is full
            _drop_what_is_left()
        print_error(f"{error.filename or 'the output'}: {(error.strerror or str(error)).lower()}")
        return 2


def _drop_what_is_left() -> None:
    """Or the interpreter would try to write it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """One whose complaints do not repeat the passwords of addresses."""

    def error(self, message: str) -> NoReturn:
        from runtime.camera.capture_backends import hide_password

        super().error(re.sub(r"[^\s'\"]+", lambda word: hide_password(word[0]), message))


def answer_columns(labels: Sequence[str]) -> Callable[[Prediction, str], list[str]]:
    """The columns of a prediction's answer, of its other guesses, and of a remark."""
    fancy = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    bold, dim, plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if fancy else ("", "", "")
    widest_label = max(map(width, labels))
    blocks = can_print("█░")

    def columns(prediction: Prediction, remark: str) -> list[str]:
        first, *others = prediction.top
        bar = ""
        if fancy and blocks:
            full = round(10 * first.probability)
            bar = f"  {'█' * full}{dim}{'░' * (10 - full)}{plain}"
        answer = f"{bold}{pad(first.label, widest_label)}{plain}  {first.probability:6.1%}{bar}"
        if prediction.known is False:
            answer = f"{bold}unknown{plain} (nearest: {first.label} {first.probability:.2f})"
        rest = ", ".join(f"{guess.label} {guess.probability:.1%}" for guess in others)
        return [answer, *(f"{dim}{text}{plain}" for text in (rest, remark) if text)]

    return columns


def pad(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(sign) or ord(sign) in JOINERS else 2 if east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def cut(text: str, columns: int) -> str:
    """As much of a styled text as fits, styles not counted; wide characters take two columns."""
    kept, left = [], columns
    for part in re.split("(\x1b\\[[0-9;]*m)", text):
        if part.startswith("\x1b"):
            kept.append(part)
            continue
        for sign in part:
            left -= width(sign)
            if left < 0:
                break
            kept.append(sign)
    return "".join(kept)


def printable(text: str) -> str:
    """Names come from anywhere: escapes what could break the line or command the terminal."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def print_info(line: str) -> None:
    """News, beside what the command is asked for."""
    print(printable(line), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    print_info(f"error: {text}")


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Leaves the block when the process is asked to end, wherever it is: that is how a service stops."""

    class Asked(BaseException):  # no Exception: picture code turns those into a PictureError
        pass

    def ask(number: int, frame: FrameType | None) -> None:
        raise Asked

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    except Asked:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """TFLite and LiteRT tell of their delegates on file descriptor 2 and have no setting against it.

    Only while a model is loaded, and only in the command: a program's own stderr is left alone. What an
    engine has to say about a failure is in its exception.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
