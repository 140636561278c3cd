"""--save-all and its like for photos, when the disk refuses a file."""

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
