"""Measure how much decoding slows feature extraction: from files, and from the same pictures in memory.

    python -m benchmarks.extraction PHOTOS > benchmarks/extraction.md

The photos are a part of PHOTOS/train, at their own size and enlarged to 12 megapixels. Each measurement
builds a replica of the base first; the ratio compares the medians of three alternate repetitions. The rate of
the warm replica is in TFLOP/s (2 per multiply-add, 15.35 GMAC per picture). Divide it by the peak in the data
sheet of the processor to get the model FLOP utilization.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.markdown_table import table_head, table_row
from runtime.common.terminal import suppress_native_stderr

with suppress_native_stderr():
    import keras  # noqa: F401
from benchmarks.machine import describe_machine
from runtime.preprocess.picture import read_picture
from train.data.find_photos import find_photos
from train.features.devices import find_devices
from train.features.extraction import ExtractionPlan, compute_features
from train.features.replica import Replica
from train.network.vgg import read_weights

COUNT = 96
MACS = 15.35e9  # of the base, per picture
LARGE = (4000, 3000)


def main(photos: str) -> int:
    print(f"Measured on {describe_machine()}.\n")
    print(
        table_head(
            *("photos", "from memory, s", "from files, s", "ratio", "decode only, s of one core"),
            *("from files, pictures/s", "compute only, pictures/s", "TFLOP/s"),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        print_row("original size", Path(photos) / "train")
        print_row("12 megapixels", enlarge(Path(photos) / "train", Path(folder) / "large"))
    return 0


def enlarge(photos: Path, large: Path) -> Path:
    for photo in selected(photos):
        path = large / photo.relative_to(photos)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photo) as image:
            image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(path, quality=90)
    return large


def selected(photos: Path) -> list[Path]:
    folders = sorted(path for path in photos.iterdir() if path.is_dir())
    return [file for folder in folders for file in sorted(folder.iterdir())[: COUNT // len(folders)]]


def print_row(name: str, photos: Path) -> None:
    weights, devices = read_weights(), find_devices()
    dataset = find_photos(photos, val_share=0, test_share=0, limit=COUNT // 5)
    missing = [(photo, [0]) for photo in dataset.photos]
    files = [dataset.root / photo.path for photo in dataset.photos]
    started = time.monotonic()
    pixels = np.stack([read_picture(file) for file in files])
    decode_seconds = time.monotonic() - started
    from_memory, from_files, compute_only = [], [], []
    for _ in range(3):
        started = time.monotonic()
        replica = Replica(weights, devices.names[0], devices)
        replica(pixels)
        from_memory.append(time.monotonic() - started)
        started = time.monotonic()
        replica(pixels)
        compute_only.append(time.monotonic() - started)
        with tempfile.TemporaryDirectory() as cache:
            started = time.monotonic()
            plan = ExtractionPlan(Path(cache), "block5_pool", 0, frozenset(), missing)
            compute_features(dataset.root, plan, weights, devices)
            from_files.append(time.monotonic() - started)
    ratio = median(from_files) / median(from_memory)
    file_rate, compute_rate = len(pixels) / median(from_files), len(pixels) / median(compute_only)
    tflops = 2 * MACS * compute_rate / 1e12
    row = table_row(
        name,
        f"{median(from_memory):.1f}",
        f"{median(from_files):.1f}",
        f"{ratio:.2f}",
        f"{decode_seconds:.1f}",
        f"{file_rate:.1f}",
        f"{compute_rate:.1f}",
        f"{tflops:.2f}",
    )
    print(row, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
