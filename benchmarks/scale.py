"""The rates behind docs/training-at-scale.md: one process alone, and a Ray cluster of one node.

    python -m benchmarks.scale PHOTOS > benchmarks/scale.md

Alone and by Ray in turns, each time into an empty cache; the ratio is of neighbouring turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.machine import describe_machine
from train.data.dataset import Dataset, find_photos
from train.features.extraction import _store, extract, find_devices, survey
from train.features.ray_cluster import Cluster, check, connected
from train.network.vgg import SHAPES, Weights, read_weights

COUNT = 128  # photos: four shards of two batches
ROUNDS = 2


def main(photos: str) -> int:
    print(f"Measured on {describe_machine()}.\n")
    weights = read_weights()
    tracemalloc.start()
    whole = find_photos(Path(photos) / "train", val_share=0, test_share=0)
    held = tracemalloc.get_traced_memory()[0] / len(whole.photos)
    tracemalloc.stop()
    began = time.monotonic()
    whole = find_photos(Path(photos) / "train", val_share=0, test_share=0)
    hashing = len(whole.photos) / (time.monotonic() - began)
    dataset = find_photos(Path(photos) / "train", val_share=0, test_share=0, limit=-(-COUNT // 5))

    alone: list[float] = []
    by_ray: list[float] = []
    check("local")
    with connected("local") as cluster:
        first = rate(dataset, weights, cluster)
        for _ in range(ROUNDS):  # in turns, for the machine may have other work
            alone.append(rate(dataset, weights))
            by_ray.append(rate(dataset, weights, cluster))
    began = time.process_time()
    rate(dataset, weights)
    work = (time.process_time() - began) / len(dataset.photos)
    began = time.process_time()
    rate(dataset, weights, layer="block4_pool")
    deeper = (time.process_time() - began) / len(dataset.photos)

    print("| | |\n|---|---|")
    print(f"| alone, block5_pool, photos/s | {median(alone):.1f} ({spread(alone)}) |")
    print(f"| by Ray, block5_pool, photos/s | {median(by_ray):.1f} ({spread(by_ray)}) |")
    ratios = [theirs / ours for theirs, ours in zip(by_ray, alone, strict=True)]
    print(f"| Ray to alone | {median(ratios):.2f} ({spread(ratios, 2)}) |")
    print(f"| by Ray, its worker's start included, photos/s | {first:.1f} |")
    print(f"| alone, block5_pool, seconds of one core a photo | {work:.3f} |")
    print(f"| alone, block4_pool, seconds of one core a photo | {deeper:.3f} |")
    print(f"| photos found and hashed a second, from memory | {hashing:,.0f} |")
    print(f"| features stored a second, block5_pool | {storing():,.0f} |")
    print(f"| bytes of memory a photo of the data set | {held:,.0f} |")
    print(f"| bytes of memory a file that is looked for | {looked_for(whole, weights):,.0f} |", flush=True)
    return 0


def rate(
    dataset: Dataset, weights: Weights, cluster: Cluster | None = None, layer: str = "block5_pool"
) -> float:
    with tempfile.TemporaryDirectory() as cache, redirect_stdout(sys.stderr):
        began = time.monotonic()
        extract(dataset, weights, Path(cache), views=1, layer=layer, cluster=cluster)
        return len(dataset.photos) / (time.monotonic() - began)


def storing() -> float:
    feature = np.zeros(SHAPES["block5_pool"], np.float16)
    with tempfile.TemporaryDirectory() as cache:
        began = time.monotonic()
        for number in range(500):
            _store(Path(cache) / f"{number % 256:02x}" / f"{number}.npy", feature)
        return 500 / (time.monotonic() - began)


def looked_for(dataset: Dataset, weights: Weights) -> float:
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as cache:
        work = survey(dataset, weights, Path(cache), views=2, layer="block5_pool", devices=find_devices())
        return tracemalloc.get_traced_memory()[0] / len(work.files)


def spread(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
