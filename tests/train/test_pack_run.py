from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train import pack_run as keep
from train.run import PACKED_WEIGHTS, RunError, open_run


@pytest.fixture(scope="module")
def kept(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "flowers"
    assert keep.main([str(synthetic_run), str(folder)]) == 0
    return folder


def test_it_answers_as_the_run_does(kept: Path, synthetic_run: Path, synthetic_photos: Path) -> None:
    run = open_run(kept, synthetic_photos)
    assert run.name == "flowers" and run.dataset.root == synthetic_photos
    whole = open_run(synthetic_run)
    assert run.dataset.photos == whole.dataset.photos and run.thresholds == whole.thresholds
    picture = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    for found, expected in zip(
        run.load_model().predict_on_batch(picture), whole.load_model().predict_on_batch(picture), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_it_holds_what_differs_from_the_base(kept: Path) -> None:
    assert not (kept / "model.keras").exists()
    assert not (kept / "report.html").exists(), "photos, however small, are not for a repository"
    assert sum(file.stat().st_size for file in kept.iterdir()) < 2_000_000
    assert str(Path.home()) not in (kept / "run.json").read_text()


def test_a_damaged_one_is_told(kept: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in kept.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / PACKED_WEIGHTS).write_bytes((kept / PACKED_WEIGHTS).read_bytes()[:500])
    with pytest.raises(RunError, match=r"changes\.safetensors cannot be read"):
        open_run(broken).load_model()
    (broken / "architecture.json").unlink()
    with pytest.raises(RunError, match=r"architecture\.json is missing"):
        open_run(broken)


def test_another_folder_is_not_replaced(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert keep.main([str(synthetic_run), str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path} is not a run, so it is not replaced; give another folder\n"
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_compressed_run_is_kept_with_what_the_uncompressed_one_says(
    compressed_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    assert keep.main([str(compressed_run), str(folder)]) == 0
    (folder / "README.md").write_text("of it")
    assert keep.main([str(compressed_run), str(folder)]) == 0
    assert (folder / "README.md").read_text() == "of it"
    run, whole = open_run(folder), open_run(compressed_run)
    assert run.compressed == whole.compressed and run.uncompressed_labels() == whole.uncompressed_labels()
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for found, expected in zip(
        run.load_model().predict_on_batch(picture), whole.load_model().predict_on_batch(picture), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3)
