"""Atomic writes replace regular files only."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from runtime.common.atomic import UNFINISHED_AFTER, atomic_create, atomic_write, remove_unfinished

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


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def with_and_without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not request.param:
        monkeypatch.setattr("os.link", refuse)


@pytest.mark.usefixtures("with_and_without_links")
def test_a_created_file_never_replaces_another(tmp_path: Path) -> None:
    """Also on the file systems of memory cards, which have no links."""
    for data in (b"first", b"second"):
        with contextlib.suppress(FileExistsError), atomic_create(tmp_path / "a.jpg") as file:
            file.write(data)
            assert data == b"second" or not (tmp_path / "a.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    assert (tmp_path / "a.jpg").read_bytes() == b"first"


@pytest.mark.usefixtures("with_and_without_links")
def test_a_lost_temporary_file_leaves_no_empty_one(tmp_path: Path) -> None:
    """Another process may delete the temporary file."""
    with pytest.raises(FileNotFoundError), atomic_create(tmp_path / "a.jpg") as file:
        file.write(b"data")
        next(tmp_path.iterdir()).unlink()
    assert list(tmp_path.iterdir()) == []


def test_only_old_temporary_files_are_deleted(tmp_path: Path) -> None:
    for name, age in (
        (".a.jpg.0", UNFINISHED_AFTER + 60),
        (".b.jpg.0", 60),
        ("c.jpg", UNFINISHED_AFTER + 60),
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_unfinished(tmp_path, ".*.jpg.*")
    assert {path.name for path in tmp_path.iterdir()} == {".b.jpg.0", "c.jpg"}


@pytest.mark.usefixtures("with_and_without_links")
@pytest.mark.parametrize("create", [atomic_write, atomic_create])
def test_the_data_reach_the_disk_before_the_name(
    create: Callable[[Path], AbstractContextManager[BinaryIO]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a power loss could leave an empty file of that name."""
    path, on_disk = tmp_path / "a", list[tuple[int, bool]]()

    def record(descriptor: int) -> None:
        on_disk.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    with create(path) as file:
        file.write(b"data")
    assert on_disk == [(4, False)] and path.read_bytes() == b"data"


def test_two_writers_in_one_process_do_not_share_a_partial_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    for create in (atomic_write, atomic_create):
        with pytest.raises(KeyError), create(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError
    assert list(tmp_path.iterdir()) == []
