"""A folder is replaced as a whole, and other folders than an export's are never replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from export.output_dir import OutputDirError, check_output_dir, replace_dir
from runtime.model_file.files import INDEX_NAME

OLD = {INDEX_NAME: b"old", "a": b"old"}
NEW = {INDEX_NAME: b"new", "b": b"new"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_folder_replaces_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "flowers"
    replace_dir(OLD, folder)
    assert contents(folder) == OLD
    replace_dir(NEW, folder)
    assert contents(folder) == NEW
    assert list(folder.parent.iterdir()) == [folder]


def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    """A reader that opens NAME, or NAME.old if NAME is missing, as runtime/model_file does."""
    folder = tmp_path / "flowers"
    old = tmp_path / "flowers.old"
    replace_dir(OLD, folder)
    seen, wrong, done = set(), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            for place in (folder, old) * 10:  # each swap may come between two of them
                try:
                    descriptor = os.open(place, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                names = frozenset(os.listdir(descriptor))  # noqa: PTH208
                os.close(descriptor)
                seen.add(names)
                break
            else:
                wrong.append("both folders are missing")

    reader = threading.Thread(target=read)
    reader.start()
    swaps = 0
    try:
        while swaps < 60 or not {frozenset(OLD), frozenset(NEW)} <= seen:
            replace_dir(NEW, folder)
            replace_dir(OLD, folder)
            swaps += 1
    finally:
        done.set()
        reader.join()
    assert wrong == []
    # A folder that is being removed can look emptier, which runtime/model_file detects with its index.
    assert all(names <= frozenset(OLD) or names <= frozenset(NEW) for names in seen)


@pytest.mark.parametrize("step", ["write", "first rename", "second rename"])
def test_a_failure_leaves_the_old_files(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        with pytest.raises(OutputDirError, match="nothing changed"):
            replace_dir(NEW, folder)
    assert contents(folder) == OLD
    assert list(tmp_path.iterdir()) == [folder]


def test_the_next_swap_recovers_from_a_crash_between_the_renames(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    replace_dir(OLD, folder)
    folder.rename(tmp_path / "flowers.old")
    replace_dir(NEW, folder)
    assert contents(folder) == NEW
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputDirError, match="not an export's"):
        replace_dir(NEW, thesis)
    thesis.rename(tmp_path / "flowers.old")
    with pytest.raises(OutputDirError, match="not an export's"):
        replace_dir(NEW, tmp_path / "flowers")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputDirError, match="is a file"):
        replace_dir(NEW, tmp_path / "file")
    with pytest.raises(OutputDirError, match=r"file cannot be written.*--out"):
        check_output_dir(tmp_path / "file" / "models" / "flowers")
    assert (tmp_path / "flowers.old" / "chapter.txt").read_text() == "years of work"


def test_leftovers_of_a_killed_export_do_not_block_the_next_export(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    (tmp_path / f".flowers.{os.getpid()}").mkdir()
    replace_dir(NEW, folder)
    assert contents(folder) == NEW
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode, "other users can read it, unlike a temporary folder"


@pytest.mark.parametrize("length", [252, 300])
def test_a_name_that_is_too_long_is_one_line(length: int, tmp_path: Path) -> None:
    """A name of 252 characters fits, but not with .old added."""
    with pytest.raises(OutputDirError, match=r"aa: .*File name too long.*--out"):
        check_output_dir(tmp_path / ("a" * length))


def test_a_parent_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o600)
    user = os.geteuid()
    try:
        if user == 0:  # root may search any folder
            os.seteuid(65534)
        with pytest.raises(OutputDirError, match=r"flowers: .*Permission denied"):
            check_output_dir(private / "models" / "flowers")
    finally:
        os.seteuid(user)
        private.chmod(0o700)


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    replace_dir(NEW, tmp_path / "flowers")
    assert contents(tmp_path / "flowers") == NEW
