"""What each int8 recipe gives: the ladder's, those that did not pay, and both libraries' own ways.

    python -m benchmarks.int8 RUN [RECIPE…] > benchmarks/int8.md        also writes benchmarks/int8.csv

Measured on the run's validation photos, since recipes are chosen there; test/ is not read.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from export.int8.quantize import Recipe
from export.int8.search import CALIBRATION_PHOTOS, INT8, LADDER
from export.parity.parity import ParityResult, run_parity
from export.photos import read_photos
from runtime.common.terminal import suppress_native_stderr
from train.run import open_run

with suppress_native_stderr():
    import keras
    import tensorflow as tf
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from export import onnx as to_onnx
from export.int8.quantize import quantize
from export.serving_model import predict, save_serving_model, serving_model

PHOTOS = 100  # of val
BEST = LADDER[0]
RECIPES = [
    Recipe("nearest, no correction"),
    replace(LADDER[2], name="nearest"),
    replace(LADDER[1], name="gptq"),
    replace(BEST, name="gptq-equalized"),
    replace(BEST, name="gptq-equalized, 8 bits unpaired", weights="8 bits"),
    replace(BEST, name="gptq-equalized, 7 bits", weights="7 bits"),
    replace(BEST, name="gptq-equalized fully", equalization=1.0),
    replace(BEST, name="gptq-equalized, int8 first layer", float_first=False),
    replace(BEST, name="gptq-equalized, 99.99th percentile", activations="percentile"),
    replace(BEST, name="gptq-equalized, least squared error", activations="mse"),
    replace(BEST, name="gptq-equalized, entropy", activations="entropy"),
]
Files = dict[tuple[str, str], bytes]


def main(run_folder: str, *only: str) -> int:
    run = open_run(Path(run_folder))
    model = serving_model(run)
    size = (model.inputs[0].shape[1], model.inputs[0].shape[2])
    calibration = read_photos(run.dataset, "train", size, CALIBRATION_PHOTOS).pixels
    validation = read_photos(run.dataset, "val", size, PHOTOS)
    reference = predict(model, validation.pixels, lambda done: None)["probabilities"]

    def planned(recipe: Recipe) -> Files:
        plan = quantize(model, calibration, recipe)
        return {(format, "int8"): convert(model, plan) for format, convert in INT8.items()}

    ways: dict[str, Callable[[], Files]] = {
        "the libraries' defaults": lambda: by_the_book(model, calibration, reduce_range=False),
        "the libraries' defaults, reduce_range": lambda: by_the_book(model, calibration, reduce_range=True),
    }
    ways |= {recipe.name: (lambda recipe=recipe: planned(recipe)) for recipe in RECIPES}
    found: list[tuple[str, float, ParityResult]] = []
    for name, make in ways.items():
        if not only or name in only:
            started = time.monotonic()
            files = make()
            seconds = time.monotonic() - started
            rows = run_parity(files, reference, validation.pixels, validation.truth, ["litert", "onnx"])
            found += [(name, seconds, row) for row in rows]
            print(f"{name}: {seconds:.0f} s", *rows, sep="\n  ", file=sys.stderr, flush=True)
    write(found)
    return 0


def by_the_book(model: keras.Model, calibration: NDArray[np.uint8], reduce_range: bool) -> Files:
    """What TFLiteConverter and quantize_static make of the same photos without being told more."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            photo = next(self.left, None)
            return None if photo is None else {"image": photo[np.newaxis]}

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(to_onnx.float32(model))
        options = {"per_channel": True, "reduce_range": reduce_range}
        quantization.quantize_static(before, after, Reader(), **options)
        files = {("onnx", "int8"): after.read_bytes()}
        if not reduce_range:  # TFLiteConverter knows no such thing
            save_serving_model(model, Path(folder) / "saved", batch=1)
            converter = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "saved"))
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([photo[np.newaxis]] for photo in calibration)
            files["tflite", "int8"] = converter.convert()
    return files


def write(found: list[tuple[str, float, ParityResult]]) -> None:
    """The table on stdout, and benchmarks/int8.csv."""
    head = [
        "recipe",
        "format",
        "engine",
        "n",
        "MB",
        "top-1",
        "agreement",
        "mean Δp",
        "p99",
        "max",
        "ms",
        "made in s",
    ]
    lines = [
        [
            name,
            row.format,
            row.engine,
            f"{row.n}",
            f"{row.bytes / 1e6:.1f}",
            f"{row.top1:.3f}",
            f"{row.agreement:.3f}",
            f"{row.mean_dp:.4f}",
            f"{row.p99_dp:.3f}",
            f"{row.max_dp:.3f}",
            f"{row.ms:.0f}",
            f"{seconds:.0f}",
        ]
        for name, seconds, row in found
    ]
    with (Path(__file__).parent / "int8.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *lines])
    print(f"Measured on {describe_machine()}.\n")
    for line in [head, ["---"] * len(head), *lines]:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
