"""Training and compression with photos of none of the classes, from folders to run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.preprocess.picture import read_picture
from tests.conftest import QUICK
from train.__main__ import main
from train.compress.__main__ import main as compress
from train.data import negatives as default_set
from train.data.dataset import Photo
from train.network.descriptor import channel_means, describe
from train.network.vgg import POOLS
from train.run import STATISTICS, Run, RunError, open_run

FLAGS = ["--views", "2", "--epochs", "10", "--learning-rate", "0.1"]


@pytest.fixture(scope="module")
def photos(synthetic_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn flowers, and 40 pictures of stripes in the folder none."""
    root = shutil.copytree(synthetic_photos, tmp_path_factory.mktemp("negatives") / "photos")
    (root / "none").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        stripes = rng.integers(0, 256, (8, 1, 3), np.uint8).repeat(8, axis=1)
        Image.fromarray(stripes).resize((96, 96), Image.Resampling.NEAREST).save(root / f"none/{number}.png")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with fine-tuned blocks."""
    out = tmp_path_factory.mktemp("runs") / "negatives"
    fine_tune = ["--fine-tune", "block4", "--fine-tune-epochs", "2", "--fine-tune-views", "2"]
    arguments = [str(photos), "--out", str(out), "--weights", str(small_weights), *FLAGS, *fine_tune]
    with few_default_negatives():
        assert main(arguments) == 0
    return open_run(out)


@contextmanager
def few_default_negatives() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default_set, "MIN_NEGATIVES", 20)
        patch.setattr(default_set, "MAX_NEGATIVES", 20)
        yield


def outputs_of(
    run: Run, photos: tuple[Photo, ...], mirror: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`known` [N] and the descriptors [N, D] that the saved model computes from the files."""
    model = run.load_model()
    means = [channel_means(model.get_layer(pool).output) for pool in POOLS]
    both = keras.Model(model.inputs[0], [model.outputs[1], *means])
    size = model.input_shape[1:3]
    pixels = np.stack([read_picture(run.dataset.root / photo.path, size) for photo in photos])
    known, *values = map(np.asarray, both.predict_on_batch(pixels[:, :, ::-1] if mirror else pixels))
    return known[:, 0], describe(values)


def check(run: Run) -> None:
    """The recorded figures and statistics are those of the saved model on the pictures themselves."""
    recorded = json.loads((run.path / "metrics.json").read_text())
    for split in ("val", "test"):
        of_split = run.dataset.negatives_of(split)
        kinds = {
            "negatives": tuple(photo for photo in of_split if not default_set.is_default(photo)),
            "default_negatives": tuple(photo for photo in of_split if default_set.is_default(photo)),
        }
        for kind, photos in kinds.items():
            known, _ = outputs_of(run, photos)
            named = float((known >= run.thresholds["known"]).mean())
            share = run.metrics[split][kind.replace("negatives", "named")]
            assert share == recorded[split][kind]["named"] == pytest.approx(named)
            assert run.metrics[split][kind] == recorded[split][kind]["n"] == len(photos) > 0
            assert sum(recorded[split][kind]["per_class"].values()) == round(named * len(photos))
    statistics = run.statistics()
    assert statistics is not None
    train = run.dataset.split("train")
    views = [outputs_of(run, train, mirror) for mirror in (False, True)]
    known, descriptors = (np.concatenate(part) for part in zip(*views, strict=True))
    labels = np.array([run.classes.index(photo.label) for photo in train] * 2)
    means = np.stack([descriptors[labels == index].mean(0) for index in range(len(run.classes))])
    np.testing.assert_allclose(statistics.means, means, atol=5e-3)
    # Few photos are in val, so the examples are the training photos, in their order.
    np.testing.assert_array_equal(statistics.positive_labels, labels)
    np.testing.assert_allclose(statistics.positive_features, descriptors, atol=0.02)
    np.testing.assert_allclose(statistics.positive_known, known, atol=0.02)


@pytest.mark.slow
def test_a_run_with_fine_tuned_blocks_records_what_the_model_computes(run: Run) -> None:
    check(run)


@pytest.mark.slow
def test_a_compressed_run_records_what_the_model_computes(run: Run, tmp_path: Path) -> None:
    assert compress([str(run.path), "--out", str(tmp_path / "small"), *QUICK]) == 0
    small = open_run(tmp_path / "small")
    check(small)
    assert small.dataset.negatives == run.dataset.negatives


@pytest.mark.slow
def test_a_dry_run_counts_negatives(
    photos: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dry-run", "--out", str(tmp_path / "run"), "--cache", str(tmp_path), *FLAGS]
    flags += ["--weights", str(small_weights), "--fine-tune", "block5", "--fine-tune-views", "3"]
    with few_default_negatives():
        assert main([str(photos), *flags]) == 0
    printed = capsys.readouterr().out
    # 30 training photos in 3 views, 28 negatives and 14 default ones in 2 views; 10 photos, 12 negatives and
    # 6 default ones in val and test.
    assert "would compute: features of 202 pictures" in printed
    assert "30 photos in 2 views, and 30 pictures of none of the classes" in printed
    assert "in one of 3 views, and 15 pictures of none of the classes" in printed


@pytest.mark.slow
def test_damaged_statistics_raise_run_error(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / STATISTICS).write_bytes((run.path / STATISTICS).read_bytes()[:-1])
    with pytest.raises(RunError, match=r"statistics\.safetensors.*train it again"):
        open_run(copy).statistics()
    (copy / STATISTICS).unlink()
    assert open_run(copy).statistics() is None
