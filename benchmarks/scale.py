"""Measure the rates in docs/training-at-scale.md: one machine, alone and as a Ray cluster of one node.

    python -m benchmarks.scale PHOTOS > benchmarks/scale.md

Both ways run alternately, each time with an empty cache; the ratio compares neighbouring repetitions.
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
from benchmarks.markdown_table import table_head, table_row
from train.data.dataset import Dataset
from train.data.find_photos import find_photos
from train.features.devices import find_devices
from train.features.extraction import extract, plan_extraction
from train.features.ray_address import check_ray_address
from train.features.ray_cluster import RayCluster, connect_to_ray
from train.features.store import feature_layout, write_feature
from train.network.vgg import Weights, read_weights

COUNT = 128  # photos: 4 shards of 2 batches
ROUNDS = 2


def main(photos: str) -> int:
    print(f"Measured on {describe_machine()}.\n")
    weights = read_weights()
    tracemalloc.start()
    whole = find_photos(Path(photos) / "train", val_share=0, test_share=0)
    bytes_per_photo = tracemalloc.get_traced_memory()[0] / len(whole.photos)
    tracemalloc.stop()
    started = time.monotonic()
    whole = find_photos(Path(photos) / "train", val_share=0, test_share=0)
    hash_rate = len(whole.photos) / (time.monotonic() - started)
    dataset = find_photos(Path(photos) / "train", val_share=0, test_share=0, limit=-(-COUNT // 5))

    one_process: list[float] = []
    by_ray: list[float] = []
    check_ray_address("local")
    with connect_to_ray("local") as cluster:
        first_rate = rate(dataset, weights, cluster)
        for _ in range(ROUNDS):  # alternately, because the machine may have other work
            one_process.append(rate(dataset, weights))
            by_ray.append(rate(dataset, weights, cluster))
    started = time.process_time()
    rate(dataset, weights)
    block5_seconds = (time.process_time() - started) / len(dataset.photos)
    started = time.process_time()
    rate(dataset, weights, layer="block4_pool")
    block4_seconds = (time.process_time() - started) / len(dataset.photos)

    ratios = [ray / alone for ray, alone in zip(by_ray, one_process, strict=True)]
    print(table_head("measurement", "value"))
    for name, value in {
        "one process, block5_pool, photos/s": f"{median(one_process):.1f} ({value_range(one_process)})",
        "Ray, block5_pool, photos/s": f"{median(by_ray):.1f} ({value_range(by_ray)})",
        "Ray / one process": f"{median(ratios):.2f} ({value_range(ratios, 2)})",
        "Ray with the start of the worker, photos/s": f"{first_rate:.1f}",
        "one process, block5_pool, CPU seconds per photo": f"{block5_seconds:.3f}",
        "one process, block4_pool, CPU seconds per photo": f"{block4_seconds:.3f}",
        "photos found and hashed per second, from the page cache": f"{hash_rate:,.0f}",
        "features stored per second, block5_pool": f"{store_rate(weights):,.0f}",
        "memory per photo of the data set, bytes": f"{bytes_per_photo:,.0f}",
        "memory per planned cache file, bytes": f"{bytes_per_file(whole, weights):,.0f}",
    }.items():
        print(table_row(name, value))
    return 0


def rate(
    dataset: Dataset, weights: Weights, cluster: RayCluster | None = None, layer: str = "block5_pool"
) -> float:
    with tempfile.TemporaryDirectory() as cache, redirect_stdout(sys.stderr):
        started = time.monotonic()
        extract(dataset, weights, Path(cache), views=1, layer=layer, cluster=cluster)
        return len(dataset.photos) / (time.monotonic() - started)


def store_rate(weights: Weights) -> float:
    row = np.zeros(feature_layout(weights, "block5_pool").values, np.float16)
    with tempfile.TemporaryDirectory() as cache:
        started = time.monotonic()
        for number in range(500):
            write_feature(Path(cache) / f"{number % 256:02x}" / f"{number}.npy", row)
        return 500 / (time.monotonic() - started)


def bytes_per_file(dataset: Dataset, weights: Weights) -> float:
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as cache:
        work = plan_extraction(
            dataset, weights, Path(cache), views=2, layer="block5_pool", devices=find_devices()
        )
        return tracemalloc.get_traced_memory()[0] / len(work.files)


def value_range(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
