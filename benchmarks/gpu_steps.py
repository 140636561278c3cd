"""The steps of benchmarks/gpu.py, each in its own process: drawing, and the measurements on one device.

    python -m benchmarks.gpu_steps draw|features|fine-tune|article --work DIR --photos N --compare N

The last line on stdout is a JSON object with the results. A step on the GPU stores its results for the
compared photos in DIR; the same step on the CPU compares its own results with them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageEnhance, ImageOps

from train.data.synthetic import FLOWERS, SYNTHETIC_MARKER, draw_flower

if TYPE_CHECKING:
    from train.features.devices import Devices
    from train.features.extraction import Features
    from train.network.vgg import Weights
    from train.train_head import TrainedHead

VARIANTS = 40  # photos made from one drawing, which takes 20 times as long as a photo
VAL_SHARE = 0.2
FINE_TUNE_PHOTOS = 4000  # of all drawn photos
FINE_TUNE_EPOCHS = 2  # the first one includes the compilation
COMPUTE_BATCHES = 5  # timed, after one that compiles


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=int, required=True)
    parser.add_argument("--compare", type=int, required=True)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--weights")
    arguments = parser.parse_args(argv)
    with redirect_stdout(sys.stderr):  # the stages print their progress
        values = STEPS[arguments.step](arguments)
    print(json.dumps(values))
    return 0


def draw(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw the photos into class folders, on all cores."""
    per_class = -(-arguments.photos // len(FLOWERS))
    drawings = -(-per_class // VARIANTS)
    counts = {number: min(VARIANTS, per_class - number * VARIANTS) for number in range(drawings)}
    partial_folder = photo_folder(arguments).with_name(".photos")
    shutil.rmtree(partial_folder, ignore_errors=True)
    for name in FLOWERS:
        (partial_folder / name).mkdir(parents=True)
    (partial_folder / SYNTHETIC_MARKER).write_text("drawn\n", encoding="utf-8")
    tasks = [(name, number, count) for name in FLOWERS for number, count in counts.items()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(draw_variants, partial_folder), tasks, chunksize=4))
    partial_folder.rename(photo_folder(arguments))
    return {"photos": per_class * len(FLOWERS)}


def draw_variants(folder: Path, task: tuple[str, int, int]) -> None:
    """Write `count` photos of one drawing: crops of 80 % a side or more, some mirrored and darker."""
    name, number, count = task
    drawing = draw_flower(name, number)
    rng = np.random.default_rng([sorted(FLOWERS).index(name), number, count])
    for variant in range(count):
        width, height = (int(side * rng.uniform(0.8, 1)) for side in drawing.size)
        left, top = (
            int(rng.integers(full - side + 1))
            for full, side in zip(drawing.size, (width, height), strict=True)
        )
        photo = drawing.crop((left, top, left + width, top + height))
        if rng.random() < 0.5:
            photo = ImageOps.mirror(photo)
        photo = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.7, 1.3))
        photo.save(folder / name / f"{name}-{number:03d}-{variant:02d}.jpg", quality=90)


def measure_features(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute and store the features of all photos, as `python -m train` does, and the rates of its parts."""
    weights, devices = load_base(arguments)
    started = time.monotonic()
    features = extract_features(arguments, weights, devices, "block5_pool", photo_count(arguments))
    seconds = time.monotonic() - started
    photos = len(features.dataset.photos)
    rates = {"decoding": decoding_rate(features, devices), "computing": computing_rate(weights, devices)}
    compared = extract_features(arguments, weights, devices, "block5_pool", arguments.compare)
    rows = np.concatenate([compared.of(split)[0][:] for split in ("train", "val")])
    return {
        "photos": photos,
        "photos_per_s": rate_after_first_batch(features, devices) or photos / seconds,
        "seconds": seconds,
        "flops_per_s": 2 * macs(weights) * rates["computing"],
        "rates": rates,
        **compare(arguments, rows.reshape(len(rows), -1).astype(np.float32)),
        **describe(devices),
    }


def measure_fine_tuning(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune block5 on the compared photos, then, on a GPU, on more photos for the rate."""
    from train.settings import RECIPES

    settings = replace(
        RECIPES["pooled"],
        views=1,
        epochs=10,
        fine_tune="block5",
        fine_tune_views=1,
        fine_tune_epochs=FINE_TUNE_EPOCHS,
    )
    weights, devices = load_base(arguments)
    trained, val, rate, photos = fine_tune_on(arguments, arguments.compare, weights, devices, settings)
    compared = compare(arguments, predict(trained, val))
    if arguments.device == "gpu":
        count = min(FINE_TUNE_PHOTOS, arguments.photos)
        *_, rate, photos = fine_tune_on(arguments, count, weights, devices, settings)
    # A pass forward and a pass backward, which has twice the products; the frozen blocks are not included.
    flops = 6 * macs(weights, first_block=5) * rate
    return {
        "photos": photos,
        "photos_per_s": rate,
        "flops_per_s": flops,
        **compared,
        **describe(devices),
    }


def fine_tune_on(
    arguments: argparse.Namespace, count: int, weights: Weights, devices: Devices, settings: Any
) -> tuple[TrainedHead, NDArray[Any], float, int]:
    """The trained blocks and head, the features of val, photos/s of the last epoch, and photos in train."""
    from train.finetune import fine_tune, upper_blocks
    from train.train_head import train_head

    features = extract_features(arguments, weights, devices, "block4_pool", count)
    train, (store, labels), classes = features.of("train"), features.of("val"), len(features.dataset.classes)
    rows = np.arange(0, len(store), -(-len(store) // 200))  # of each class
    val = store[rows], labels[rows]
    head = train_head(train, val, classes, settings, upper_blocks(weights, settings))
    stamps: list[float] = []
    trained, _ = fine_tune(
        head, train, val, classes, weights, settings, on_epoch=lambda *_: stamps.append(time.monotonic())
    )
    return trained, val[0], len(train[1]) / (stamps[-1] - stamps[-2]), len(train[1])


def measure_article(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the head of the article's recipe on the compared photos, then, on a GPU, on all photos."""
    from train.settings import RECIPES
    from train.train_head import train_head

    settings = RECIPES["article"]
    weights, devices = load_base(arguments)

    def train_on(count: int) -> tuple[TrainedHead, NDArray[Any], float, int]:
        features = extract_features(arguments, weights, devices, "block5_pool", count)
        train, (store, labels) = features.of("train"), features.of("val")
        val = store[:], labels
        started = time.monotonic()
        trained = train_head(train, val, len(features.dataset.classes), settings)
        seconds = time.monotonic() - started
        return trained, val[0], settings.epochs * len(train[1]) / seconds, len(train[1])

    trained, val, rate, photos = train_on(arguments.compare)
    compared = compare(arguments, predict(trained, val))
    if arguments.device == "gpu":
        trained, _, rate, photos = train_on(arguments.photos)
    parameters = trained.classifier.count_params()
    return {
        "photos": photos,
        "photos_per_s": rate,
        "flops_per_s": 6 * parameters * rate,
        **compared,
        **describe(devices),
    }


def load_base(arguments: argparse.Namespace) -> tuple[Weights, Devices]:
    """The base's weights and the devices. Raises SystemExit when a required GPU is not visible."""
    from train.features.devices import find_devices
    from train.network.vgg import read_weights

    devices = find_devices()
    if os.environ.get("VGG_EDGE_REQUIRE_GPU") and devices.dtype == "float32":
        raise SystemExit(f"{backend()} sees no GPU: its packages do not fit the driver or the card")
    return read_weights(arguments.weights), devices


def extract_features(
    arguments: argparse.Namespace, weights: Weights, devices: Devices, layer: str, count: int
) -> Features:
    """The features of `count` of the photos, spread over the classes; stored ones are not computed again."""
    from train.data.find_photos import find_photos
    from train.features.extraction import extract

    per_class = max(count // len(FLOWERS), 2)
    dataset = find_photos(photo_folder(arguments), val_share=VAL_SHARE, test_share=0, limit=per_class)
    cache = arguments.work / f"features-{backend()}-{arguments.device}"
    return extract(dataset, weights, cache, views=1, layer=layer, devices=devices, limit=sys.maxsize)


def rate_after_first_batch(features: Features, devices: Devices) -> float | None:
    """Photos/s between the end of the first batch, which compiles the base, and the end of the last one.

    The times are those of the stored files; None if there is only one batch.
    """
    files = [file for split in ("train", "val") for file in features.of(split)[0].files]
    written = sorted(file.stat().st_mtime for file in files)
    first = devices.batch * len(devices.names)
    if len(written) <= first or written[-1] <= written[first - 1]:
        return None
    return (len(written) - first) / (written[-1] - written[first - 1])


def decoding_rate(features: Features, devices: Devices) -> float:
    """Photos/s that the threads decode when a device computes in no time."""
    from train.features.batches import extract_batches

    class NoDevice:
        batch, input_size = devices.batch, input_size_of(features)

        def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
            return pixels[:, 0, 0]

    photos = features.dataset.photos[: 4 * devices.batch]
    started = time.monotonic()
    batches = extract_batches(features.dataset.root, [(photo, [0]) for photo in photos], [NoDevice()])  # type: ignore[list-item]
    decoded = sum(len(batch.pictures) for batch in batches)
    return decoded / (time.monotonic() - started)


def input_size_of(features: Features) -> tuple[int, int]:
    height, width, _ = features.layout.shape  # after five poolings
    return 32 * height, 32 * width


def computing_rate(weights: Weights, devices: Devices) -> float:
    """Photos/s of all devices on pictures in memory, with the transfers to and from the device."""
    from train.features.replica import Replica

    replica = Replica(weights, devices.names[0], devices)
    pixels = np.random.default_rng(0).integers(0, 256, (devices.batch, *weights.input_size, 3), np.uint8)
    replica(pixels)  # compiles, and halves the batch if it does not fit
    started = time.monotonic()
    for _ in range(COMPUTE_BATCHES):
        replica(pixels)
    return len(devices.names) * COMPUTE_BATCHES * len(pixels) / (time.monotonic() - started)


def macs(weights: Weights, first_block: int = 1) -> int:
    """Multiply-accumulates per photo of the blocks from `first_block` on."""
    from train.compress.allocation import NetworkShape

    return NetworkShape(weights.input_size[0], weights.widths).macs_from(first_block)


def predict(trained: TrainedHead, features: NDArray[Any]) -> NDArray[np.float32]:
    from train.train_head import predict_in_batches

    return predict_in_batches(trained.classifier, predict_in_batches(trained.reducer, features))


def compare(arguments: argparse.Namespace, outputs: NDArray[np.float32]) -> dict[str, Any]:
    """Store the outputs [n, …] of a GPU step; of a CPU step, compare them with the stored ones."""
    file = arguments.work / f"{backend()}-{arguments.step}.npy"
    if arguments.device == "gpu":
        np.save(file, outputs)
        return {}
    if not file.exists():
        return {}
    expected, found = outputs.astype(np.float64), np.load(file).astype(np.float64)
    if arguments.step == "features":
        lengths = np.maximum(np.linalg.norm(expected, axis=1), 1e-6)
        error = float((np.linalg.norm(found - expected, axis=1) / lengths).max())
        return {"compared": {"photos": len(found), "features_error": error}}
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    return {"compared": {"photos": len(found), "same_labels": same}}


def describe(devices: Devices) -> dict[str, Any]:
    """The devices, the peak memory in GB of the first GPU and of this process, and the machine."""
    from benchmarks.machine import describe_machine, kilobytes_to_mb

    peak = gpu_peak_bytes() if devices.dtype != "float32" else None
    return {
        "devices": len(devices.names),
        "gpu_gb": None if peak is None else peak / 1e9,
        "host_gb": kilobytes_to_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e3,
        "machine": describe_machine(),
    }


def gpu_peak_bytes() -> int | None:
    if backend() == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
    import tensorflow

    return int(tensorflow.config.experimental.get_memory_info("GPU:0")["peak"])


def backend() -> str:
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def photo_count(arguments: argparse.Namespace) -> int:
    return int(arguments.photos if arguments.device == "gpu" else arguments.compare)


def photo_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.work) / "photos"


STEPS = {
    "draw": draw,
    "features": measure_features,
    "fine-tune": measure_fine_tuning,
    "article": measure_article,
}

if __name__ == "__main__":
    sys.exit(main())
