from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from runtime.common.file_lock import exclusive_lock
from runtime.preprocess.picture import read_picture
from tests.helpers import PATIENCE, ROOT, start_python
from train.data import negatives
from train.data.dataset import PhotosError
from train.network.vgg import tensors_of
from train.refit import choose_negatives, history_of, main
from train.run import UNCOMPRESSED_CSV, Run, RunError, open_run


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of stripes."""
    folder, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for number in range(40):
        colors = rng.integers(0, 256, (8, 1, 3), np.uint8).repeat(8, axis=1)
        Image.fromarray(colors).resize((96, 96), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def refitted(compressed_run: Path, stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "refitted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "MIN_NEGATIVES", 20)
        patch.setattr(negatives, "MAX_NEGATIVES", 20)
        assert main([str(compressed_run), "--none", str(stripes), "--out", str(out)]) == 0
    return open_run(out)


def test_a_missing_package_is_one_line(stripes: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['imagehash'] = None; "
        "from train.refit import main; sys.exit(main(sys.argv[1:]))"
    )
    run = ROOT / "models" / "flowers_compressed"
    process = start_python("-c", code, run, "--none", stripes, "--out", tmp_path / "run")
    _, errors = process.communicate(timeout=PATIENCE)
    (line,) = errors.splitlines()
    assert process.returncode == 2 and line.startswith("error: imagehash is not installed: ")


def outputs(run: Run, photos: Sequence[Path] = ()) -> dict[str, np.ndarray]:
    """The outputs for the test photos, or for other photos, by name."""
    model = run.load_model()
    size = model.input_shape[1:3]
    paths = photos or [run.dataset.root / photo.path for photo in run.dataset.split("test")]
    pictures = np.stack([read_picture(path, size) for path in paths])
    values = keras.tree.flatten(model.predict_on_batch(pictures))
    return dict(zip(model.output_names, map(np.asarray, values), strict=True))


def test_unusable_photos_of_none_are_left_out_and_listed(
    synthetic_run: Path,
    stripes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(negatives, "MIN_NEGATIVES", 20)
    monkeypatch.setattr(negatives, "MAX_NEGATIVES", 20)
    run = open_run(synthetic_run)
    frames = Path(shutil.copytree(stripes, tmp_path / "frames"))
    (frames / "bad.png").write_bytes((frames / "0.png").read_bytes()[:100])
    Image.open(run.dataset.root / run.dataset.photos[0].path).save(frames / "copy.png")
    dataset = choose_negatives(run, frames)
    assert {item.path for item in dataset.left_out} == {str(frames / "bad.png"), str(frames / "copy.png")}
    assert len(negatives.own_negatives(dataset)) == 40
    printed = capsys.readouterr().out
    assert f"left out: {frames / 'bad.png'}: " in printed and "--near-duplicates" not in printed
    for photo in negatives.own_negatives(dataset):
        Path(photo.path).write_bytes((frames / "bad.png").read_bytes() + photo.path.encode())
    (frames / "copy.png").unlink()
    with pytest.raises(PhotosError, match="no readable photo"):
        choose_negatives(run, frames)


def test_the_network_and_its_classes_stay(compressed_run: Path, refitted: Run) -> None:
    before = open_run(compressed_run)
    kernels, same = tensors_of(before.load_model().layers), tensors_of(refitted.load_model().layers)
    assert all(np.array_equal(kernels[name], same[name]) for name in kernels)
    old, new = outputs(before), outputs(refitted)
    # The temperature is chosen again on the same photos.
    np.testing.assert_allclose(old["probabilities"], new["probabilities"], atol=0.02)
    assert not np.allclose(old["known"], new["known"], atol=0.02)
    assert refitted.metrics["test"]["top1"] == before.metrics["test"]["top1"]
    assert refitted.uncompressed_labels() == before.uncompressed_labels()


def test_a_run_that_is_not_compressed_stays_so(
    synthetic_run: Path, stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negatives, "MIN_NEGATIVES", 20)
    monkeypatch.setattr(negatives, "MAX_NEGATIVES", 20)
    out = tmp_path / "refitted"
    assert main([str(synthetic_run), "--none", str(stripes), "--out", str(out)]) == 0
    assert open_run(out).uncompressed_classes() is None
    for not_computed in (UNCOMPRESSED_CSV, "near_duplicates.csv"):
        assert not (out / not_computed).exists()


def test_a_second_command_does_not_write_the_same_run(
    compressed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive_lock(tmp_path / ".out.lock"):
        assert main([str(compressed_run), "--out", str(tmp_path / "out")]) == 2
    assert "another command is writing it" in capsys.readouterr().err


def test_the_photos_of_the_folder_are_recorded_beside_the_default_ones(refitted: Run, stripes: Path) -> None:
    own = negatives.own_negatives(refitted.dataset)
    assert len(own) == 40 and len(refitted.dataset.negatives) == 60
    assert {Path(photo.path).parent for photo in own} == {stripes}
    assert refitted.metrics["test"]["negatives"] == 6  # 15 %
    assert refitted.metrics["test"]["default_negatives"] == 3
    statistics = refitted.statistics()
    assert statistics is not None and statistics.means.shape[0] == len(refitted.classes)


def test_the_detector_learns_from_the_photos_of_the_folder(compressed_run: Path, refitted: Run) -> None:
    """Few drawn flowers are in val, so that the threshold is low: `known` shows more than its threshold."""
    unseen = [
        Path(photo.path) for photo in negatives.own_negatives(refitted.dataset) if photo.split == "test"
    ]
    before, after = (outputs(run, unseen)["known"] for run in (open_run(compressed_run), refitted))
    assert len(unseen) == 6
    assert after.mean() < before.mean() - 0.1
    assert after.max() < np.median(outputs(refitted)["known"])


def test_a_run_without_detector_is_refused(
    compressed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for file in compressed_run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    record = json.loads((copy / "run.json").read_text()) | {"thresholds": {}}
    (copy / "run.json").write_text(json.dumps(record))
    assert main([str(copy), "--out", str(tmp_path / "out")]) == 2
    assert "--no-known" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", [None, "stage,epoch\nhead,one\n", "epoch,loss\n1,2\n", "stage,epoch\nhead,1,2\n"]
)
def test_a_damaged_history_raises_run_error(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "history.csv").write_text(text)
    run = replace(open_run(ROOT / "models" / "flowers_compressed"), path=tmp_path)
    with pytest.raises(RunError, match=r"history\.csv cannot be read"):
        history_of(run)


def test_an_empty_folder_of_negatives_is_refused(
    compressed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    arguments = ["--none", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert main([str(compressed_run), *arguments]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err and not (tmp_path / "out").exists()
