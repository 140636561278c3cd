"""The values of flags, and the errors of the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

import pytest

from runtime.common.cli import (
    ArgumentParser,
    duration,
    frames_or_duration,
    megabytes,
    percentage,
    positive_int,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("1s", 1), ("1.5", 1.5), ("2m", 120), ("1h", 3600), ("0", 0)]
)
def test_a_duration_has_a_unit_or_means_seconds(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_a_whole_number_means_frames_and_a_unit_means_time() -> None:
    assert frames_or_duration("5") == 5 and isinstance(frames_or_duration("5"), int)
    assert frames_or_duration("5s") == 5.0 and isinstance(frames_or_duration("5s"), float)


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("2.5", 0.025), ("99 %", 0.99)])
def test_a_percentage_may_have_its_sign(text: str, share: float) -> None:
    assert percentage(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((duration, text) for text in ("", "ms", "-1s", "nan", "inf", "1e9", "1 day")),
        *((positive_int, text) for text in ("0", "-1", "1.5", "x", "9" * 5000)),
        *((megabytes, text) for text in ("-1", "nan", "inf", "x")),
        *((percentage, text) for text in ("0", "100%", "-1", "nan", "%", "10%%")),
    ],
)
def test_a_wrong_value_is_rejected(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


def test_a_usage_error_does_not_repeat_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--every", type=duration)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--every", "1s", "rtsp://user:secret@camera/stream"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "secret" not in error and "camera" in error


HOSTILE = "a\x1b]0;owned\x07\u202e\nerror: forged\udcff.jpg"


def test_a_usage_error_escapes_a_file_name(capfd: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--every", type=duration)
    for arguments in (["--every", HOSTILE], [f"--{HOSTILE}"], ["--every", "1", HOSTILE]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        last = capfd.readouterr().err.splitlines()[-1]
        assert last.isprintable() and "a\\x1b]0;owned\\x07\\u202e\\nerror: forged\\udcff" in last


@pytest.mark.parametrize("command", ["classify", "serve", "bench"])
def test_each_command_escapes_its_usage_errors(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    main = import_module(f"runtime.{command}").main
    with pytest.raises(SystemExit, match="2"):
        main(["--threads", HOSTILE])
    assert "\x1b" not in capfd.readouterr().err
