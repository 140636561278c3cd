from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from train import dry_run
from train.__main__ import main
from train.data.dataset import Dataset, Photo
from train.data.find_photos import find_photos
from train.features.batches import FeatureBatch, PhotoViews
from train.features.devices import Devices
from train.features.extraction import ExtractionPlan


def test_a_dry_run_prints_an_estimate_and_writes_nothing(
    synthetic_photos: Path,
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dry_run, "TIME_BOX", 0.0)
    out, cache = tmp_path / "runs" / "run", tmp_path / "cache"
    flags = ["--dry-run", "--fine-tune", "block5", "--fine-tune-views", "1", "--views", "1", "--epochs", "3"]
    flags += ["--weights", str(small_weights), "--no-negatives"]
    assert main([str(synthetic_photos), "--out", str(out), "--cache", str(cache), *flags]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("would")]
    train = int(re.findall(r"(\d+) train", printed.out)[0])
    assert f"would compute: features of 40 pictures, 0.00 GB, in {cache}" in lines[0]
    assert lines[1:3] == [
        f"would train: the pooled head for 3 epochs of {train} pictures, {train} photos in 1 views",
        f"would fine-tune: from block5 on, for 6 epochs of {train} photos, each in one of 1 views",
    ]
    for line, what in zip(lines[3:], ("features at", "head at", "block5 at", "in all"), strict=False):
        assert re.match(r"would take: about [\d.:e+-]+( s)?,? ", line) and what in line
    assert lines[-1] == f"would write: {out}"
    assert "head" not in printed.err and "WARNING" not in printed.err
    assert not out.parent.exists() and not list(cache.rglob("*.npy"))
    small = [*flags, "--cache", str(cache), "--cache-limit", "1e-6"]
    assert main([str(synthetic_photos), "--out", str(out), *small]) == 2
    assert "give a higher --cache-limit" in capsys.readouterr().err


def test_the_sample_of_a_dry_run_is_a_small_part_of_the_work(
    synthetic_photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computed = 0

    class CountingReplica:
        def __init__(self, weights: object, device: str, devices: Devices, layer: str) -> None:
            self.batch, self.input_size = devices.batch, (64, 64)

        def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
            nonlocal computed
            computed += len(pixels)
            return np.zeros((len(pixels), 1), np.float16)

    monkeypatch.setattr(dry_run, "Replica", CountingReplica)
    dataset = find_photos(synthetic_photos)
    work = ExtractionPlan(
        tmp_path, "block5_pool", 1, frozenset(), [(photo, [0, 1]) for photo in dataset.photos * 10]
    )
    start, rate = dry_run._time_extraction(dataset, work, None, Devices(("cpu:0",), "float32", False, 16))  # type: ignore[arg-type]
    assert start > 0 and rate > 0
    assert work.pictures == 800 and computed < 200


@pytest.mark.parametrize("readable", [0, 1])
def test_photos_that_cannot_be_read_end_the_sample(
    readable: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a run, unreadable photos are the only ones without features."""

    def extract_batches(
        root: Path, jobs: Iterable[PhotoViews], replicas: list[object]
    ) -> Generator[FeatureBatch]:
        tried = list(itertools.islice(jobs, 1000))
        assert len(tried) < 1000, "the photos are tried again and again"
        if readable:
            yield FeatureBatch([(tried[0][0], 0)], [])
        yield FeatureBatch([], [], [(item, "cannot be decoded") for item in tried[readable:]])

    monkeypatch.setattr(dry_run, "Replica", lambda *arguments: object())
    monkeypatch.setattr(dry_run, "extract_batches", extract_batches)
    photo = Photo("roses/broken.jpg", "roses", "train", "0" * 64)
    dataset = Dataset(tmp_path, ("roses", "tulips"), (photo,))
    work = ExtractionPlan(tmp_path, "block5_pool", 1, frozenset(), [(photo, [0])])
    start, rate = dry_run._time_extraction(dataset, work, None, Devices(("cpu:0",), "float32", False, 16))  # type: ignore[arg-type]
    assert start == 0 and bool(rate) == bool(readable)
