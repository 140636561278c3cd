"""A folder is replaced as a whole, and other folders than an export's are never replaced."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from export.output_dir import TARGETS_NAME, OutputDirError, check_output_dir, lock_output_dir, replace_dir
from runtime.model_file.files import INDEX_NAME, SIGNATURE_NAME
from runtime.model_file.index import Index, IndexedFile
from tests.helpers import make_contract


def index(name: str) -> bytes:
    """The bytes of a model.json that lists one file."""
    contract = make_contract("flowers", ("daisy", "rose"), 32)
    return Index(contract, (IndexedFile(name, "tflite", "int8", 3, "0" * 64, {}),)).to_json().encode()


OLD = {INDEX_NAME: index("a"), "a": b"old"}
NEW = {INDEX_NAME: index("b"), "b": b"new"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_folder_replaces_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my" / "models" / "flowers"
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


def test_ctrl_c_between_the_renames_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "flowers"
    replace_dir(OLD, folder)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replace_dir(NEW, folder)
    assert contents(folder) == OLD and list(tmp_path.iterdir()) == [folder]


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


@pytest.mark.parametrize("name", ["notes.txt", ".git", "flowers_int8.tflite.bak"])
def test_files_that_no_export_wrote_are_not_deleted(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    replace_dir({**OLD, "README.md": b"", "parity.csv": b"", SIGNATURE_NAME: b""}, folder)
    for system_file in (".DS_Store", "._model.json"):
        (folder / system_file).write_bytes(b"")
    check_output_dir(folder)
    (folder / name).mkdir()
    (folder / "other").write_text("mine")
    with pytest.raises(OutputDirError, match=rf"flowers: holds {name} and 1 more, which .*delete.*--out"):
        replace_dir(NEW, folder)
    (folder / "other").unlink()
    with pytest.raises(OutputDirError, match=rf"flowers: holds {name}, which"):
        check_output_dir(folder)
    (folder / name).rmdir()
    (folder / "mine").write_text("mine")
    replace_dir({**NEW, "mine": b"mine"}, folder)  # a signature is added to such a folder
    assert (folder / "mine").read_text() == "mine"


def test_the_files_of_targets_are_an_exports(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    replace_dir({**OLD, "a.cc": b"", TARGETS_NAME: b'[{"files": {"a.cc": "0"}}]'}, folder)
    replace_dir(NEW, folder)
    assert contents(folder) == NEW
    (folder / TARGETS_NAME).write_text("{")
    with pytest.raises(OutputDirError, match=r"targets\.json: is damaged.*--out"):
        check_output_dir(folder)


def test_a_backup_named_old_is_not_deleted(tmp_path: Path) -> None:
    folder, backup = tmp_path / "flowers", tmp_path / "flowers.old"
    replace_dir(OLD, folder)
    replace_dir(NEW, backup)
    with pytest.raises(OutputDirError, match=r"flowers\.old: an export to .*flowers would delete it"):
        replace_dir(NEW, folder)
    assert (contents(folder), contents(backup)) == (OLD, NEW)


def test_ctrl_c_after_the_swap_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command reports the new files, and half of the old ones do not stop the next export."""
    folder = tmp_path / "flowers"
    replace_dir(OLD, folder)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupt)
        replace_dir(NEW, folder)
    assert contents(folder) == NEW
    assert not folder.with_name("flowers.old").exists()
    replace_dir(OLD, folder)


def test_a_link_and_a_mounted_file_system_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OutputDirError, match=r"link: is a symbolic link; .*--out"):
        check_output_dir(tmp_path / "link")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(OutputDirError, match=r"disk: is a mounted file system; .*--out"):
        check_output_dir(tmp_path / "disk")


def test_two_exports_to_one_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    with (
        lock_output_dir(folder),
        lock_output_dir(tmp_path / "trees"),
        pytest.raises(OutputDirError, match=r"flowers: another export"),
        lock_output_dir(folder),
    ):
        pass
    with lock_output_dir(folder), lock_output_dir(tmp_path / "no" / "such" / "folder"):
        pass
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_export_do_not_block_the_next_export(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    for name, age in ((".export-young", 60), (".export-old", 3600)):
        (tmp_path / name / "new").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    replace_dir(NEW, folder)
    assert {path.name for path in tmp_path.iterdir()} == {"flowers", ".export-young"}
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
