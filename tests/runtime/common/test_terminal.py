"""The line that the camera redraws, and the width of texts."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.common.text import display_width, truncate
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("text", "columns", "kept"),
    [
        ("tulips", 6, "tulips"),
        ("tulips", 5, "tulip"),
        ("红红红", 5, "红红"),
        ("e\u0301e\u0301", 1, "e\u0301"),
        ("\x1b[1mtulips\x1b[0m 41%", 4, "\x1b[1mtuli\x1b[0m"),  # never left bold
        ("tulips", 0, ""),
    ],
)
def test_truncate_counts_visible_columns(text: str, columns: int, kept: str) -> None:
    assert truncate(text, columns) == kept


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
@pytest.mark.parametrize(("reported", "columns"), [(20, 20), (80, 80), (0, 80)])  # 0: a serial console
def test_the_camera_redraws_one_line_that_fits_the_terminal(
    reported: int, columns: int, colours: Path, clips: dict[str, Path]
) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, reported, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.classify", "--camera", clips["h264"], "--model", colours],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    with suppress(OSError):
        while data := os.read(ours, 4096):
            output += data
    os.close(ours)
    assert process.wait() == 0
    header, drawn, end = re.sub(r"\x1b\[[0-9;]*[mK]", "", output.decode()).split("\r\n")
    lines = drawn.split("\r")[1:]
    assert "64 x 48" in header and end == "" and len(lines) >= 3
    assert all(display_width(line) < columns for line in lines)
    assert lines[0].startswith("红 ") and lines[-1].startswith("blau ")
    assert ("ms old" in lines[-1]) == (columns == 80)
