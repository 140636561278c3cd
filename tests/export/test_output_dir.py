"""The swap of a folder: old or new, never a mixture, and never what is not an export's."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from export.output_dir import FolderError, check_output_dir, replace_dir
from runtime.model_file.files import INDEX_NAME

OLD = {INDEX_NAME: b"old", "a": b"old"}
NEW = {INDEX_NAME: b"new", "b": b"new"}


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_new_replaces_old_whole(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "flowers"
    replace_dir(OLD, folder)
    assert held(folder) == OLD
    replace_dir(NEW, folder)
    assert held(folder) == NEW
    assert list(folder.parent.iterdir()) == [folder]


def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    """A reader that opens NAME, or NAME.old where there is no NAME, as runtime/model.py does."""
    folder = tmp_path / "flowers"
    old = tmp_path / "flowers.old"
    replace_dir(OLD, folder)
    seen, wrong, done = set(), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            for place in (folder, old, folder):
                try:
                    descriptor = os.open(place, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                names = frozenset(os.listdir(descriptor))  # noqa: PTH208
                os.close(descriptor)
                seen.add(names)
                break
            else:
                wrong.append("neither folder is there")

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        replace_dir(NEW, folder)
        replace_dir(OLD, folder)
    done.set()
    reader.join()
    assert wrong == []
    # One that is being removed may be seen emptier, which runtime/model.py finds by its index; never mixed.
    assert all(names <= frozenset(OLD) or names <= frozenset(NEW) for names in seen)
    assert {frozenset(OLD), frozenset(NEW)} <= seen


@pytest.mark.parametrize("step", ["write", "first rename", "second rename"])
def test_a_failure_leaves_the_old_set(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "flowers"
    replace_dir(OLD, folder)
    rename, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if len(calls) == {"first rename": 1, "second rename": 2}.get(step):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        if step == "write":
            patch.setattr(
                os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error"))
            )
        with pytest.raises(FolderError, match="nothing changed"):
            replace_dir(NEW, folder)
    assert held(folder) == OLD
    assert list(tmp_path.iterdir()) == [folder]


def test_recovers_from_a_crash_between_the_renames(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    replace_dir(OLD, folder)
    folder.rename(tmp_path / "flowers.old")
    replace_dir(NEW, folder)
    assert held(folder) == NEW
    assert list(tmp_path.iterdir()) == [folder]


def test_keeps_what_is_not_an_exports(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(FolderError, match="holds other files"):
        replace_dir(NEW, thesis)
    thesis.rename(tmp_path / "flowers.old")
    with pytest.raises(FolderError, match="holds other files"):
        replace_dir(NEW, tmp_path / "flowers")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="is a file"):
        replace_dir(NEW, tmp_path / "file")
    with pytest.raises(FolderError, match="file cannot be written"):
        check_output_dir(tmp_path / "file" / "models" / "flowers")
    assert (tmp_path / "flowers.old" / "chapter.txt").read_text() == "years of work"


def test_what_a_killed_export_left_is_not_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    (tmp_path / f".flowers.{os.getpid()}").mkdir()
    replace_dir(NEW, folder)
    assert held(folder) == NEW
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode, "others read it, whatever mktemp does"


@pytest.mark.parametrize("length", [252, 300])
def test_too_long_a_name_is_one_line(length: int, tmp_path: Path) -> None:
    """At 252 there is room for the folder, and none for the old one beside it."""
    with pytest.raises(FolderError, match=r"aa: cannot be made there \(File name too long\); give another"):
        check_output_dir(tmp_path / ("a" * length))


def test_below_a_folder_that_may_not_be_searched(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o600)
    user = os.geteuid()
    try:
        if user == 0:  # root may search any
            os.seteuid(65534)
        with pytest.raises(FolderError, match=r"flowers: cannot be made there \(Permission denied\)"):
            check_output_dir(private / "models" / "flowers")
    finally:
        os.seteuid(user)
        private.chmod(0o700)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    replace_dir(NEW, tmp_path / "flowers")
    assert held(tmp_path / "flowers") == NEW
