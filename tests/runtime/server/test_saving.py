"""The flags of `runtime.serve` that save pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from runtime.camera.options import SaveOptions
from runtime.camera.saving import check_save_options
from runtime.common.errors import UserError
from runtime.server.run import ServerConfig, open_server
from tests.helpers import wait_for
from tests.runtime.camera.helpers import RED, jpeg, mjpeg_server, plain
from tests.serving import serve_in_thread


def test_a_folder_of_two_flags_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "roses")
    saving = SaveOptions(save_all=tmp_path / "link", capture=("roses", tmp_path))
    with pytest.raises(UserError, match=r"--capture .*roses: is the folder of --save-all too"):
        check_save_options(saving)
    check_save_options(SaveOptions(save_all=tmp_path / "all", save_unknown=tmp_path / "unknown"))


def test_uploaded_photos_are_saved_by_their_answer(
    knowing: Path, red_jpeg: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, sample = tmp_path / "unknown", tmp_path / "sample"
    with serve_in_thread(knowing, saving=SaveOptions(save_unknown=unknown, save_all=sample)) as service:
        assert service.classify(red_jpeg)[1]["known"] is True
        assert service.classify(jpeg(plain((30, 0, 0))))[1]["known"] is False
        assert service.classify(b"no picture")[0] == 415
    assert len(list(sample.iterdir())) == 2
    (saved,) = unknown.iterdir()
    assert Image.open(saved).size == (64, 48)
    assert f"saved 1 photo in {unknown}" in capsys.readouterr().err


def test_a_full_folder_does_not_end_the_answers(knowing: Path, red_jpeg: bytes, tmp_path: Path) -> None:
    saving = SaveOptions(capture=("rot", tmp_path), max_mb=0)
    with serve_in_thread(knowing, saving=saving) as service:
        assert [service.classify(red_jpeg)[0] for _ in range(2)] == [200, 200]
    assert list(tmp_path.iterdir()) == []


def test_frames_of_the_camera_are_captured(knowing: Path, tmp_path: Path) -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red) as server:
        saving = SaveOptions(capture=("rot", tmp_path))
        with serve_in_thread(knowing, camera=server.address, saving=saving):
            wait_for(lambda: (tmp_path / "rot").exists() and list((tmp_path / "rot").glob("2*.jpg")))


def test_a_folder_that_training_would_read_in_another_way_is_refused(knowing: Path, tmp_path: Path) -> None:
    (tmp_path / "rot").mkdir()
    saving = SaveOptions(capture=("rto", tmp_path))
    with pytest.raises(UserError, match="--new-class"):
        open_server(ServerConfig(model=str(knowing), port=0, saving=saving)).__enter__()
