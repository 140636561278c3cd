"""Atomic writes replace regular files only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.common.atomic import atomic_write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files of POSIX")


def write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"new")


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "disk" / "results.csv", tmp_path / "results.csv"
    target.parent.mkdir()
    if there:
        target.write_bytes(b"old")
    link.symlink_to("disk/results.csv")
    write(link)
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert {path.name for path in tmp_path.rglob("*")} == {"disk", "results.csv"}


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    """As root, /dev/null would have become a file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "link", "loop", "."):
        with pytest.raises(OSError):
            write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "loop"}
