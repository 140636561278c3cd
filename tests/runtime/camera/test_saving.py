"""--save-all and --capture for photos."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from runtime.camera import recorder
from runtime.classify import main


def test_a_photo_that_cannot_be_saved_exits_1(
    colours: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = [str(photos / "red.jpg"), "--model", str(colours), "--save-all", str(tmp_path / "all")]
    assert main(arguments) == 0
    monkeypatch.setattr(recorder, "atomic_create", full)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out.count("红") == 2 and "no space left" in err


def test_captured_photos_go_to_the_class_folder_that_exists(
    colours: Path, photos: Path, tmp_path: Path
) -> None:
    existing = tmp_path / "pe\u0301tunia"  # as macOS writes it
    existing.mkdir()
    arguments = [str(photos / "red.jpg"), "--model", str(colours)]
    assert main([*arguments, "--capture", "p\u00e9tunia", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == [existing] and len(list(existing.iterdir())) == 1
