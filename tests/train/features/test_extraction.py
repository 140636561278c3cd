from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.preprocess.picture import read_picture
from tests.helpers import ROOT
from train.cache import CacheError, make_room
from train.data.class_weights import NEGATIVE
from train.data.dataset import LeftOut, file_sha256
from train.data.find_photos import find_photos
from train.data.near_duplicates import near_duplicates
from train.data.synthetic import draw_flower
from train.features.batches import _map_ahead
from train.features.devices import Devices, find_devices
from train.features.extraction import extract, plan_extraction
from train.features.replica import Replica
from train.features.store import feature_layout
from train.network.vgg import Weights, base_layers, load_weights, picture_input, read_weights


@pytest.fixture(scope="module")
def weights(small_weights: Path) -> Weights:
    return read_weights(str(small_weights))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for label in ("daisy", "roses"):
        (root / label).mkdir(parents=True)
        for number in range(3):
            draw_flower(label, number).save(root / label / f"{number}.png")
    return root


def files(cache: Path) -> dict[str, int]:
    """The inode of each file by its name. A file that is written again gets another inode."""
    return {path.name: path.stat().st_ino for path in cache.rglob("*") if path.is_file()}


def test_cached_features_are_not_computed_again(photos: Path, tmp_path: Path, weights: Weights) -> None:
    cache = tmp_path / "cache"
    dataset = find_photos(photos)
    x, y = extract(dataset, weights, cache, views=1).of("train")
    assert x.shape == (2, 2, 2, 32) and x[:].dtype == np.float16
    assert y.tolist() == [0, 1]
    before = files(cache)
    assert len(before) == 6

    (photos / "roses" / "2.png").rename(photos / "roses" / "renamed.png")
    draw_flower("roses", 3).save(photos / "roses" / "3.png")
    mirrored = extract(find_photos(photos), weights, cache, views=2)
    after = files(cache)
    train = len(mirrored.dataset.split("train"))
    assert before.items() <= after.items(), "cached features were computed again"
    assert len(after) == 7 + train

    x, y = mirrored.of("train")
    assert len(x) == len(y) == 2 * train and y[:train].tolist() == y[train:].tolist()
    assert len(mirrored.of("val")[0]) == len(mirrored.dataset.split("val")), (
        "only training photos are mirrored"
    )


def test_features_are_the_output_of_the_base(photos: Path, tmp_path: Path, weights: Weights) -> None:
    features = extract(find_photos(photos), weights, tmp_path / "cache", views=2)
    base = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8))
    pixels = [
        read_picture(photos / photo.path, weights.input_size) for photo in features.dataset.split("train")
    ]
    rows = base(np.stack(pixels + [picture[:, ::-1] for picture in pixels]))
    layout = feature_layout(weights, "block5_pool")
    store = features.of("train")[0]
    np.testing.assert_allclose(store[:], layout.features(rows), rtol=2e-3, atol=1e-2)
    for found, expected in zip(store.channel_means(), layout.channel_means(rows), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("layer", ["block5_pool", "block3_pool"])
def test_a_row_holds_the_means_of_all_pooling_layers_up_to_the_layer(weights: Weights, layer: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    rows = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8), layer)(pixels)
    layout = feature_layout(weights, layer)
    assert rows.shape == (3, layout.values) and rows.dtype == np.float16
    image = picture_input(weights.input_size)
    base = keras.Model(image, base_layers(image, widths=weights.widths))
    load_weights(base, weights)
    means = layout.channel_means(rows)
    assert len(means) == int(layer[5])
    for number, found in enumerate(means, 1):
        pool = keras.Model(image, base.get_layer(f"block{number}_pool").output).predict_on_batch(pixels)
        np.testing.assert_allclose(found, pool.mean((1, 2)), rtol=2e-3, atol=1e-3)
    last = keras.Model(image, base.get_layer(layer).output).predict_on_batch(pixels)
    np.testing.assert_allclose(layout.features(rows), last, rtol=2e-3, atol=1e-2)


def test_negatives_follow_the_training_photos_in_fewer_views(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    outside = tmp_path / "outside.png"
    draw_flower("tulips", 0).save(outside)
    found = find_photos(photos)
    one = replace(found.photos[0], path=str(outside), label="none", sha256=file_sha256(outside))
    negatives = tuple(replace(one, split=split) for split in ("train", "val"))
    dataset = replace(found, negatives=negatives)
    features = extract(dataset, weights, tmp_path / "cache", views=3)
    photos_in_train = len(dataset.split("train"))
    store, labels = features.photos_and_negatives("train")
    assert labels.tolist() == [0, 1] * 3 + 2 * [NEGATIVE] and len(store) == 3 * photos_in_train + 2
    pixels = read_picture(outside, weights.input_size)
    base = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8))
    rows = base(np.stack([pixels, pixels[:, ::-1]]))
    np.testing.assert_allclose(store[-2:], store.layout.features(rows), rtol=2e-3, atol=1e-2)
    assert [len(features.negatives_of(split)[0]) for split in ("train", "val", "test")] == [2, 1, 0]
    outside.write_text("not a picture")
    again = extract(dataset, weights, tmp_path / "other", views=1).dataset
    assert not again.negatives and [item.path for item in again.left_out] == [str(outside)]


def test_unreadable_photos_are_left_out(photos: Path, tmp_path: Path, weights: Weights) -> None:
    (photos / "daisy" / "text.jpg").write_text("not a picture")
    cut = (photos / "roses" / "0.png").read_bytes()
    (photos / "roses" / "cut.png").write_bytes(cut[: len(cut) // 2])
    dataset = extract(find_photos(photos), weights, tmp_path / "cache", views=1).dataset
    assert len(dataset.photos) == 6
    assert [item.path for item in dataset.left_out] == ["daisy/text.jpg", "roses/cut.png"]


def test_a_photo_that_changed_since_it_was_hashed_is_left_out(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    dataset = find_photos(photos)
    changed = dataset.split("val")[0]
    draw_flower("daisy", 9).save(photos / changed.path)
    found = extract(dataset, weights, tmp_path / "cache", views=1).dataset
    assert found.left_out == (
        LeftOut(changed.path, "has changed since it was hashed; start the command again"),
    )
    assert not list((tmp_path / "cache").rglob(f"*{changed.sha256}*"))


def test_a_truncated_cache_file_is_computed_again(photos: Path, tmp_path: Path, weights: Weights) -> None:
    cache = tmp_path / "cache"
    before = extract(find_photos(photos), weights, cache, views=1).of("train")[0][:]
    for file in cache.rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:99])
    after = extract(find_photos(photos), weights, cache, views=1).of("train")[0][:]
    np.testing.assert_array_equal(after, before)


def test_a_damaged_cache_file_of_the_right_size_raises_user_error(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    features = extract(find_photos(photos), weights, tmp_path / "cache", views=1)
    for file in features.folder.rglob("*.npy"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UserError, match=r"\.npy: is damaged; delete this file"):
        features.of("train")[0][:]


def test_a_cache_that_another_process_cleared_raises_user_error(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    features = extract(find_photos(photos), weights, tmp_path / "cache", views=1)
    next(features.folder.rglob("*.npy")).unlink()
    with pytest.raises(UserError, match="was deleted during this run"):
        for split in ("train", "val", "test"):
            features.of(split)[0][:]


def test_a_cache_that_cannot_be_written_raises_cache_error(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    (tmp_path / "cache").write_text("a file, where no folder can be made")
    with pytest.raises(CacheError, match="Not a directory"):
        extract(find_photos(photos), weights, tmp_path / "cache", views=1)


def test_running_out_of_memory_halves_the_batch(weights: Weights) -> None:
    """The test raises the error of an accelerator."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
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


@pytest.mark.slow
def test_float16_is_accurate_and_does_not_overflow() -> None:
    """With VGG16's own weights, and even with eight times its activations."""
    weights = read_weights()
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


def test_other_errors_of_a_device_are_raised(weights: Weights) -> None:
    replica = Replica(weights, "cpu:0", Devices(("cpu:0",), "float32", jit=False, batch=8))
    with pytest.raises(Exception, match="shape"):
        replica(np.zeros((2, 64, 64, 4), np.uint8))


TWO_DEVICES = """
import sys, threading
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
from train.data.find_photos import find_photos
from train.features import extraction
from train.features.devices import Devices
from train.features.replica import Replica
from train.network.vgg import read_weights
used = {}
call = Replica.__call__
def noted(self, pixels):
    used.setdefault(self.device, []).append(self.model.weights[0].value.device)
    return call(self, pixels)
Replica.__call__ = noted
two = Devices(("cpu:0", "cpu:1"), "float32", jit=True, batch=2)
dataset = find_photos(Path(sys.argv[1]))
found = extraction.extract(dataset, read_weights(sys.argv[4]), Path(sys.argv[2]), views=2, devices=two)
assert sorted(used) == ["cpu:0", "cpu:1"], used
for device, places in used.items():
    assert all(place.lower().endswith(device) for place in places), used
np.save(sys.argv[3], found.of("train")[0][:])
"""


@pytest.mark.slow
def test_each_of_two_devices_has_a_compiled_replica(
    photos: Path, tmp_path: Path, weights: Weights, small_weights: Path
) -> None:
    """In a subprocess, because TensorFlow accepts logical devices only before its first operation."""
    command = [
        sys.executable,
        "-c",
        TWO_DEVICES,
        str(photos),
        str(tmp_path / "two"),
        str(tmp_path / "two.npy"),
        str(small_weights),
    ]
    subprocess.run(command, check=True, timeout=300)
    one = extract(find_photos(photos), weights, tmp_path / "one", views=2)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), one.of("train")[0][:], rtol=2e-3, atol=1e-2)


def test_map_ahead_starts_a_window_of_items_and_keeps_their_order() -> None:
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = _map_ahead(pool, lambda number: number * number, numbers(), 5)
        assert next(results) == 0
        assert len(begun) == 5
        assert list(results) == [number * number for number in range(1, 20)]


KILLED = """
import os, signal, sys
from pathlib import Path
from train.data.find_photos import find_photos
from train.features import extraction
from train.features.devices import Devices
from train.network.vgg import read_weights
point, photos, cache, weights = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
sync, stored = os.fsync, 0
def then_die(number):
    global stored
    stored += 1
    if point == "write" and stored == 4:  # written but not renamed yet
        os.kill(os.getpid(), signal.SIGKILL)
    sync(number)
os.fsync = then_die
store = extraction.write_feature
def then_store(file, feature):
    store(file, feature)
    if point == "batch" and stored == 4:  # the second batch is complete
        os.kill(os.getpid(), signal.SIGKILL)
extraction.write_feature = then_store
cpu = Devices(("cpu:0",), "float32", jit=False, batch=2)
extraction.extract(find_photos(photos), read_weights(weights), cache, views=2, devices=cpu)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("point", "whole"), [("write", 3), ("batch", 4)])
def test_a_killed_extraction_loses_at_most_one_batch(
    point: str, whole: int, photos: Path, tmp_path: Path, weights: Weights, small_weights: Path
) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, point, str(photos), str(cache), str(small_weights)]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    kept = {name: inode for name, inode in files(cache).items() if not name.startswith(".")}
    assert len(kept) == whole

    cpu = Devices(("cpu:0",), "float32", jit=False, batch=2)
    dataset = find_photos(photos)
    again = extract(dataset, weights, cache, views=2, devices=cpu)
    undisturbed = extract(dataset, weights, tmp_path / "other", views=2, devices=cpu)
    assert kept.items() <= files(cache).items(), "complete features were computed again"
    for split in ("train", "val", "test"):
        # Two steps of float16: other batches may add up in another order.
        np.testing.assert_allclose(again.of(split)[0][:], undisturbed.of(split)[0][:], rtol=2e-3, atol=1e-3)


def test_a_cache_limit_that_is_too_low_raises_user_error_before_any_work(
    photos: Path, tmp_path: Path, weights: Weights
) -> None:
    with pytest.raises(UserError, match="--cache-limit"):
        extract(find_photos(photos), weights, tmp_path / "cache", views=1, limit=1000)
    assert not (tmp_path / "cache").exists()


def test_every_file_of_a_cache_can_be_evicted(photos: Path, tmp_path: Path, weights: Weights) -> None:
    cache, dataset = tmp_path / "cache", find_photos(photos)
    near_duplicates(dataset, cache)
    work = plan_extraction(dataset, weights, cache, views=3, layer="block5_pool", devices=find_devices())
    half_written = {file.with_name(f".{file.name}.123") for file in work.files}
    for file in work.files | half_written:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(work.size))
    make_room(cache, [], needed=1, limit=1)
    assert not files(cache)
