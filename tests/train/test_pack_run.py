from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.common.file_lock import exclusive_lock
from train.compress.__main__ import main as compress
from train.data.dataset import read_verified
from train.data.find_photos import find_photos
from train.network import vgg
from train.pack_run import main
from train.run import PACKED_WEIGHTS, RunError, open_run
from train.run_writer import write_record


@pytest.fixture(scope="module", autouse=True)
def small_bundled_weights(small_weights: Path) -> Iterator[None]:
    """Only runs of the bundled base can be packed: here the small base takes its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "BUNDLED", small_weights)
        yield


@pytest.fixture(scope="module")
def packed_run(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "flowers"
    assert main([str(synthetic_run), str(folder)]) == 0
    return folder


def test_a_packed_run_gives_the_same_outputs_as_the_run(
    packed_run: Path, synthetic_run: Path, synthetic_photos: Path
) -> None:
    run = open_run(packed_run, synthetic_photos)
    assert run.name == "flowers" and run.dataset.root == synthetic_photos
    whole = open_run(synthetic_run)
    assert run.dataset.photos == whole.dataset.photos and run.thresholds == whole.thresholds
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for found, expected in zip(
        run.load_model().predict_on_batch(picture), whole.load_model().predict_on_batch(picture), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_packed_run_holds_only_tensors_that_differ_from_the_base(packed_run: Path) -> None:
    assert not (packed_run / "model.keras").exists()
    assert not (packed_run / "report.html").exists(), "photos, however small, are not for a repository"
    assert sum(file.stat().st_size for file in packed_run.iterdir()) < 2_000_000
    assert str(Path.home()) not in (packed_run / "run.json").read_text()


def test_a_packed_run_finds_moved_photos_of_none_of_the_classes(
    synthetic_run: Path, synthetic_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(synthetic_run, run)
    frames = tmp_path / "frames"
    (frames / "monday").mkdir(parents=True)
    (frames / "monday" / "1.jpg").write_bytes(b"a picture")
    dataset = find_photos(synthetic_photos, none=frames)
    write_record(run, json.loads((run / "run.json").read_text()), dataset)
    folder = tmp_path / "packed"
    assert main([str(run), str(folder)]) == 0
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    moved = open_run(folder, synthetic_photos, frames.rename(tmp_path / "moved")).dataset
    (photo,) = moved.negatives
    assert read_verified(moved, photo) == b"a picture" and moved.sha256 == dataset.sha256
    assert compress([str(folder), "--photos-root", str(synthetic_photos)]) == 2
    assert re.search(r"monday/1\.jpg: No such file .* give --none, or", capsys.readouterr().err)


def test_a_damaged_packed_run_raises_run_error(packed_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in packed_run.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / PACKED_WEIGHTS).write_bytes((packed_run / PACKED_WEIGHTS).read_bytes()[:500])
    with pytest.raises(RunError, match=r"changes\.safetensors cannot be read"):
        open_run(broken).load_model()
    for text in ("[]", 100_000 * "["):
        (broken / "architecture.json").write_text(text)
        with pytest.raises(RunError, match=r"architecture\.json or changes\.safetensors cannot be read"):
            open_run(broken).load_model()
    (broken / "architecture.json").unlink()
    with pytest.raises(RunError, match=r"architecture\.json is missing"):
        open_run(broken)


def test_a_folder_that_is_not_a_run_is_not_replaced(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main([str(synthetic_run), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: exists and is not a run") and error.count("\n") == 1
    assert "FOLDER" in error and "--out" not in error
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_is_replaced_only_with_overwrite_and_never_by_itself(
    packed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = (Path(shutil.copytree(packed_run, tmp_path / name)) for name in ("run", "folder"))
    before = (folder / "run.json").read_bytes()
    with exclusive_lock(tmp_path / ".folder.lock"):
        locked = main([str(run), str(folder), "--overwrite"])
    assert (locked, main([str(run), str(folder)]), main([str(run), str(run), "--overwrite"])) == (2, 2, 2)
    errors = capsys.readouterr().err.splitlines()
    facts = ("another command is writing it", "use --overwrite to replace it", "is the run to pack")
    assert [fact in error for fact, error in zip(facts, errors, strict=True)] == [True] * 3
    assert (folder / "run.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run"]


def test_a_packed_compressed_run_keeps_the_uncompressed_labels_and_its_readme(
    compressed_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    assert main([str(compressed_run), str(folder)]) == 0
    (folder / "README.md").write_text("of it")
    assert main([str(compressed_run), str(folder), "--overwrite"]) == 0
    assert (folder / "README.md").read_text() == "of it"
    run, whole = open_run(folder), open_run(compressed_run)
    assert run.compressed == whole.compressed and run.uncompressed_labels() == whole.uncompressed_labels()
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for found, expected in zip(
        run.load_model().predict_on_batch(picture), whole.load_model().predict_on_batch(picture), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3)
