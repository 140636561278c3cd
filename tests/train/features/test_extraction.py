from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.preprocess.picture import read_picture
from tests.helpers import ROOT
from train.cache import CacheError, make_room
from train.data.dataset import LeftOut
from train.data.find_photos import find_photos
from train.data.near_duplicates import near_duplicates
from train.data.synthetic import draw_flower
from train.features.extraction import Devices, Replica, _ahead, extract, find_devices, survey
from train.network.vgg import Weights, load_weights, read_weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    return read_weights()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for label in ("daisy", "roses"):
        (root / label).mkdir(parents=True)
        for number in range(3):
            draw_flower(label, number).save(root / label / f"{number}.png")
    return root


def files(cache: Path) -> dict[str, int]:
    """By name, what would be another if the file were written again."""
    return {path.name: path.stat().st_ino for path in cache.rglob("*") if path.is_file()}


def test_each_photo_runs_once(photos: Path, tmp_path: Path, weights: Weights) -> None:
    cache = tmp_path / "cache"
    dataset = find_photos(photos)
    x, y = extract(dataset, weights, cache, views=1).of("train")
    assert x.shape == (2, 7, 7, 512) and x[:].dtype == np.float16
    assert y.tolist() == [0, 1]
    before = files(cache)
    assert len(before) == 6

    (photos / "roses" / "2.png").rename(photos / "roses" / "renamed.png")
    draw_flower("roses", 3).save(photos / "roses" / "3.png")
    mirrored = extract(find_photos(photos), weights, cache, views=2)
    after = files(cache)
    train = len(mirrored.dataset.split("train"))
    assert before.items() <= after.items(), "what was there is not computed again"
    assert len(after) == 7 + train

    x, y = mirrored.of("train")
    assert len(x) == len(y) == 2 * train and y[:train].tolist() == y[train:].tolist()
    assert len(mirrored.of("val")[0]) == len(mirrored.dataset.split("val")), (
        "only training photos are mirrored"
    )


def test_the_features_are_the_base_s_for_the_photo(photos: Path, tmp_path: Path, weights: Weights) -> None:
    features = extract(find_photos(photos), weights, tmp_path / "cache", views=2)
    base = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8))
    pixels = [read_picture(photos / photo.path) for photo in features.dataset.split("train")]
    expected = base(np.stack(pixels + [picture[:, ::-1] for picture in pixels]))
    np.testing.assert_allclose(features.of("train")[0][:], expected, rtol=2e-3, atol=1e-2)


def test_unreadable_photos_are_left_out(photos: Path, tmp_path: Path, weights: Weights) -> None:
    (photos / "daisy" / "text.jpg").write_text("no picture")
    cut = (photos / "roses" / "0.png").read_bytes()
    (photos / "roses" / "cut.png").write_bytes(cut[: len(cut) // 2])
    dataset = extract(find_photos(photos), weights, tmp_path / "cache", views=1).dataset
    assert len(dataset.photos) == 6
    assert [item.path for item in dataset.left_out] == ["daisy/text.jpg", "roses/cut.png"]


def test_a_photo_that_changes_after_it_was_hashed_is_left_out(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    dataset = find_photos(photos)
    changed = dataset.split("val")[0]
    draw_flower("daisy", 9).save(photos / changed.path)
    found = extract(dataset, weights, tmp_path / "cache", views=1).dataset
    assert found.left_out == (LeftOut(changed.path, "has changed while it was read"),)
    assert not list((tmp_path / "cache").rglob(f"*{changed.sha256}*"))


def test_a_damaged_cache_file_is_computed_again(photos: Path, tmp_path: Path, weights: Weights) -> None:
    cache = tmp_path / "cache"
    before = extract(find_photos(photos), weights, cache, views=1).of("train")[0][:]
    for file in cache.rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:99])
    after = extract(find_photos(photos), weights, cache, views=1).of("train")[0][:]
    np.testing.assert_array_equal(after, before)


def test_a_cache_file_of_the_right_size_that_is_none_is_told(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    features = extract(find_photos(photos), weights, tmp_path / "cache", views=1)
    for file in features.folder.rglob("*.npy"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UserError, match=r"\.npy is damaged; remove the folder"):
        features.of("train")[0][:]


def test_a_cache_that_was_cleared_meanwhile_is_told(photos: Path, tmp_path: Path, weights: Weights) -> None:
    features = extract(find_photos(photos), weights, tmp_path / "cache", views=1)
    next(features.folder.rglob("*.npy")).unlink()
    with pytest.raises(CacheError, match="No such file"):
        for split in ("train", "val", "test"):
            features.of(split)[0][:]


def test_a_cache_that_cannot_be_written_is_told(photos: Path, tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "cache").write_text("a file, where no folder can be made")
    with pytest.raises(CacheError, match="Not a directory; make room, or give another folder by --cache"):
        extract(find_photos(photos), weights, tmp_path / "cache", views=1)


def test_memory_that_runs_out_halves_the_batch(weights: Weights) -> None:
    """The error is the test's, as no accelerator is at hand; what follows it is real."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
    replica = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8))
    expected = replica(pixels)
    predict, tried = replica.model.predict_on_batch, []

    def small_only(batch: NDArray[Any]) -> Any:
        tried.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1024 bytes")
        return predict(batch)

    replica.model.predict_on_batch = small_only
    np.testing.assert_allclose(replica(pixels), expected, rtol=2e-3, atol=1e-2)
    assert tried == [5, 4, 2, 2, 1]
    assert replica.batch == 2


def test_sixteen_bits_are_near_and_do_not_overflow(weights: Weights) -> None:
    """In the type that a GPU computes in: even weights that give eight times the activations stay finite."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    pixels[1] = draw_flower("sunflowers", 0).resize((224, 224))
    exact = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=2))(pixels)
    half = Replica(weights, "cpu:0", Devices(("cpu:0",), "mixed_float16", jit=False, batch=2))
    assert relative_error(half(pixels), exact) < 0.01
    load_weights(half.model, weights, 8 * half.scale)
    assert relative_error(half(pixels) / 8, exact) < 0.01


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_other_errors_of_a_device_are_told(weights: Weights) -> None:
    replica = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8))
    with pytest.raises(Exception, match="shape"):
        replica(np.zeros((2, 224, 224, 4), np.uint8))


TWO_DEVICES = """
import sys, threading
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
from train import features
from train.backbone import read_weights
from train.dataset import find_photos
used = {}
call = features.Replica.__call__
def noted(self, pixels):
    used.setdefault(self.device, []).append(self.model.weights[0].value.device)
    return call(self, pixels)
features.Replica.__call__ = noted
two = features.Devices(("cpu:0", "cpu:1"), "float32", jit=True, batch=2)
dataset = find_photos(Path(sys.argv[1]))
found = features.extract(dataset, read_weights(), Path(sys.argv[2]), views=2, devices=two)
assert sorted(used) == ["cpu:0", "cpu:1"], used
for device, places in used.items():
    assert all(place.lower().endswith(device) for place in places), used
np.save(sys.argv[3], found.of("train")[0][:])
"""


def test_two_devices_have_a_compiled_replica_each(photos: Path, tmp_path: Path, weights: Weights) -> None:
    """In a process of its own: TensorFlow takes logical devices only before its first operation."""
    command = [
        sys.executable,
        "-c",
        TWO_DEVICES,
        str(photos),
        str(tmp_path / "two"),
        str(tmp_path / "two.npy"),
    ]
    subprocess.run(command, check=True, timeout=300)
    one = extract(find_photos(photos), weights, tmp_path / "one", views=2)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), one.of("train")[0][:], rtol=2e-3, atol=1e-2)


def test_work_is_ahead_by_a_window_and_in_order() -> None:
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = _ahead(pool, lambda number: number * number, numbers(), 5)
        assert next(results) == 0
        assert len(begun) == 5
        assert list(results) == [number * number for number in range(1, 20)]


KILLED = """
import os, signal, sys
from pathlib import Path
from train import features
from train.backbone import read_weights
from train.dataset import find_photos
point, photos, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sync, stored = os.fsync, 0
def then_die(number):
    global stored
    stored += 1
    if point == "write" and stored == 4:  # written, and not yet in its place
        os.kill(os.getpid(), signal.SIGKILL)
    sync(number)
os.fsync = then_die
store = features._store
def then_store(file, feature):
    store(file, feature)
    if point == "batch" and stored == 4:  # the second batch is whole
        os.kill(os.getpid(), signal.SIGKILL)
features._store = then_store
cpu = features.Devices(("cpu:0",), "float32", jit=False, batch=2)
features.extract(find_photos(photos), read_weights(), cache, views=2, devices=cpu)
"""


@pytest.mark.parametrize(("point", "whole"), [("write", 3), ("batch", 4)])
def test_killed_it_loses_a_batch_at_most(
    point: str, whole: int, photos: Path, tmp_path: Path, weights: Weights
) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, point, str(photos), str(cache)]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    kept = {name: inode for name, inode in files(cache).items() if not name.startswith(".")}
    assert len(kept) == whole

    cpu = Devices(("cpu:0",), "float32", jit=False, batch=2)
    dataset = find_photos(photos)
    again = extract(dataset, weights, cache, views=2, devices=cpu)
    undisturbed = extract(dataset, weights, tmp_path / "other", views=2, devices=cpu)
    assert kept.items() <= files(cache).items(), "what was whole is not computed again"
    for split in ("train", "val", "test"):
        # To two steps of float16: what was left makes other batches, which may be summed in another order.
        np.testing.assert_allclose(again.of(split)[0][:], undisturbed.of(split)[0][:], rtol=2e-3, atol=1e-3)


def test_a_cache_over_its_bound_is_told_before_it_is_filled(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    with pytest.raises(UserError, match="give a higher --cache-limit"):
        extract(find_photos(photos), weights, tmp_path / "cache", views=1, limit=300_000)
    assert not (tmp_path / "cache").exists()


def test_all_that_a_cache_holds_can_give_way(photos: Path, tmp_path: Path, weights: Weights) -> None:
    cache, dataset = tmp_path / "cache", find_photos(photos)
    near_duplicates(dataset, cache)
    work = survey(dataset, weights, cache, views=3, layer="block5_pool", devices=find_devices())
    half_written = {file.with_name(f".{file.name}.123") for file in work.files}
    for file in work.files | half_written:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(work.size))
    make_room(cache, [], needed=1, limit=1)
    assert not files(cache)
