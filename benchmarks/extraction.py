"""What decoding adds to computing: extraction from files beside `model.predict` on the same pictures decoded.

    python -m benchmarks.extraction PHOTOS > benchmarks/extraction.md

Of some photos of PHOTOS/train as they are, and of the same enlarged to twelve megapixels and saved as JPEG.
Both ways build a replica of the base first; three turns of each in one process, the ratio is of the medians.
Computing alone, with the replica built and warm, is given in TFLOP/s (two a multiply-add, 15.35 G of those a
picture); of the device's peak, which its data sheet tells, that is the model-FLOP utilization.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from runtime.common.terminal import suppress_native_stderr

with suppress_native_stderr():
    import keras  # noqa: F401
from benchmarks.machine import describe_machine
from runtime.preprocess.picture import read_picture
from train.data.dataset import find_photos
from train.features.extraction import Replica, compute, find_devices
from train.network.vgg import read_weights

COUNT = 96
MACS = 15.35e9  # of the base, for a picture
LARGE = (4000, 3000)


def main(photos: str) -> int:
    print(f"Measured on {describe_machine()}.\n")
    print(
        "| photos | decoded, s | from files, s | ratio | decoding alone, s of one core "
        "| from files, pictures/s | computing alone, pictures/s | TFLOP/s |"
    )
    print("|" + "---|" * 8)
    with tempfile.TemporaryDirectory() as folder:
        row("as they are", Path(photos) / "train")
        row("twelve megapixels", enlarged(Path(photos) / "train", Path(folder) / "large"))
    return 0


def enlarged(photos: Path, large: Path) -> Path:
    for photo in chosen(photos):
        place = large / photo.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photo) as image:
            image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(place, quality=90)
    return large


def chosen(photos: Path) -> list[Path]:
    folders = sorted(path for path in photos.iterdir() if path.is_dir())
    return [file for folder in folders for file in sorted(folder.iterdir())[: COUNT // len(folders)]]


def row(name: str, photos: Path) -> None:
    weights, devices = read_weights(), find_devices()
    dataset = find_photos(photos, val_share=0, test_share=0, limit=COUNT // 5)
    missing = [(photo, [0]) for photo in dataset.photos]
    files = [dataset.root / photo.path for photo in dataset.photos]
    began = time.monotonic()
    pixels = np.stack([read_picture(file) for file in files])
    decoding = time.monotonic() - began
    decoded, from_files, computed = [], [], []
    for _ in range(3):
        began = time.monotonic()
        replica = Replica(weights, devices.names[0], devices)
        replica(pixels)
        decoded.append(time.monotonic() - began)
        began = time.monotonic()
        replica(pixels)
        computed.append(time.monotonic() - began)
        with tempfile.TemporaryDirectory() as cache:
            began = time.monotonic()
            compute(dataset.root, missing, Path(cache), weights, "block5_pool", devices)
            from_files.append(time.monotonic() - began)
    ratio = median(from_files) / median(decoded)
    fed, alone = len(pixels) / median(from_files), len(pixels) / median(computed)
    print(
        f"| {name} | {median(decoded):.1f} | {median(from_files):.1f} | {ratio:.2f} | {decoding:.1f} "
        f"| {fed:.1f} | {alone:.1f} | {2 * MACS * alone / 1e12:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
