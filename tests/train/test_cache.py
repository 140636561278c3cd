from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.common.cli import EXIT_BROKEN_PIPE
from runtime.common.errors import UserError
from tests.helpers import ROOT
from train import cache
from train.cache import IN_USE, CacheError, cache_folder, features_in_use, make_room

LAYER = f"{16 * 'a'}-picture1-224x224-block5_pool-float32-tensorflow"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vgg-edge"


def test_the_command_prints_sizes_and_clears_the_cache(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache_folder("features") / "a").mkdir()
    (cache_folder("features") / "a" / "one.npy").write_bytes(bytes(2_000_000))
    (cache_folder("photos") / "two.tgz").write_bytes(bytes(1_000_000))
    assert cache.main([]) == 0
    printed = capsys.readouterr().out
    assert "2.0 MB        1 files  features/a" in printed
    assert "1.0 MB        1 files  photos" in printed
    assert "3.0 MB" in printed and str(home) in printed and "--clear" in printed
    assert cache.main(["--clear"]) == 0
    assert not home.exists()
    assert cache.main(["--clear"]) == 0, "an empty cache can be cleared"


def test_a_cache_that_a_running_command_uses_is_not_cleared(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with features_in_use(None):
        assert cache.main(["--clear"]) == 2
    assert f"cache {home}: a command uses it now; wait for it" in capsys.readouterr().err
    assert (home / "features").is_dir()


def test_a_cache_on_another_disk_stays_linked(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "photos").mkdir(parents=True)
    home.symlink_to(disk)
    assert cache.main(["--clear"]) == 0
    assert home.is_symlink() and not list(disk.iterdir())
    assert cache_folder("features").is_dir()


def test_a_folder_that_cannot_be_created_raises_cache_error(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(CacheError, match="--cache or XDG_CACHE_HOME"):
        cache_folder("features")


def test_a_closed_pipe_ends_the_command_without_a_traceback(home: Path) -> None:
    command = [sys.executable, "-m", "train.cache"]
    cache_folder("features")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # as `| head -0` does
        assert process.stderr.read() == b""
    assert process.returncode == EXIT_BROKEN_PIPE


def test_a_user_without_a_home_folder_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert cache.main([]) == 2
    assert "set XDG_CACHE_HOME" in capsys.readouterr().err
    with pytest.raises(UserError, match="give --cache"):
        cache_folder("features")


def aged(folder: Path, count: int) -> list[Path]:
    """Feature files of 100 bytes; the first is the least recently used."""
    files = [folder / f"{number:02x}" / f"{number:02x}{62 * '0'}.draw1-2.npy" for number in range(count)]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(100))
        os.utime(file, (1_000 + number, 1_000 + number))
    return files


def test_least_recently_used_features_are_evicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = aged(tmp_path / LAYER, 6)
    used = [files[0], tmp_path / LAYER / "to come.npy"]
    make_room(tmp_path, used, needed=100, limit=400)
    assert [file for file in files if file.exists()] == [files[0], *files[4:]]
    assert "evicted" in capsys.readouterr().out
    make_room(tmp_path, [files[4]], needed=200, limit=400)
    assert [file for file in files if file.exists()] == [files[0], files[4]], "the used file stays"


def test_other_files_are_never_evicted(tmp_path: Path) -> None:
    files = aged(tmp_path / LAYER, 2)
    for name in ("thesis.odt", "features/model.npy", f"{LAYER}/notes.txt", f"{LAYER}/00/weights.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (0, 0))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    make_room(tmp_path, [], needed=100, limit=200)
    assert before - {path for path in tmp_path.rglob("*") if path.is_file()} == {files[0]}


def test_nothing_is_evicted_if_no_room_is_needed(tmp_path: Path) -> None:
    files = aged(tmp_path / LAYER, 6)
    make_room(tmp_path, files[:2], needed=0, limit=400)
    assert all(file.exists() for file in files)


def test_features_over_the_limit_raise_user_error_and_evict_nothing(tmp_path: Path) -> None:
    files = aged(tmp_path / LAYER, 6)
    with pytest.raises(UserError, match="--cache-limit"):
        make_room(tmp_path, files[:2], needed=250, limit=400)
    with pytest.raises(UserError, match="are free on the disk"):
        make_room(tmp_path, files, needed=10**18, limit=10**19)
    assert all(file.exists() for file in files)


def test_features_that_a_running_command_uses_are_not_evicted(tmp_path: Path) -> None:
    files = aged(tmp_path / LAYER, 4)
    with features_in_use(str(tmp_path)):
        for file in files[2:]:
            os.utime(file)
        (tmp_path / f"{IN_USE}killed").touch()
        os.utime(tmp_path / f"{IN_USE}killed", (0, 0))
        make_room(tmp_path, [], needed=200, limit=400)
        assert [file for file in files if file.exists()] == files[2:]
        with pytest.raises(UserError, match="files that other commands use now; give"):
            make_room(tmp_path, [], needed=300, limit=400)
        assert [file for file in files if file.exists()] == files[2:]
    make_room(tmp_path, [], needed=300, limit=400)
    assert [file for file in files if file.exists()] == files[3:]
    assert not list(tmp_path.glob(f"{IN_USE}*"))
