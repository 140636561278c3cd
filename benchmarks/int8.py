"""Compare int8 recipes: those of export, recipes that were rejected, and the defaults of both libraries.

    python -m benchmarks.int8 RUN [RECIPE…] > benchmarks/int8.md        also writes benchmarks/int8.csv

Figures are measured on the run's validation photos, because recipes are chosen on them. test/ is not read.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import activation_ranges
from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_row
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference, run_parity
from export.photos import read_photos
from runtime.common.terminal import suppress_native_stderr
from train.run import open_run

with suppress_native_stderr():
    import keras
    import tensorflow as tf
import numpy as np
from numpy.typing import NDArray

from export import onnx_converter
from export.formats import INT8_CONVERTERS
from export.int8.quantize import Recipe, quantize
from export.int8.search import CALIBRATION_PHOTOS, RECIPES
from export.int8.weight_codes import WeightCodes
from export.serving_model import predict, save_serving_model, serving_model

PHOTOS = 100  # of val
ENGINES = ("litert", "onnx")
BEST, LAST_TOO, GPTQ, NEAREST = RECIPES
COMPARED = [
    Recipe("nearest, no correction"),
    NEAREST,
    GPTQ,
    BEST,
    LAST_TOO,
    replace(BEST, name="gptq-equalized, 8 bits unpaired", weight_codes=WeightCodes()),
    replace(BEST, name="gptq-equalized, 7 bits", weight_codes=WeightCodes(63)),  # ONNX Runtime's reduce_range
    replace(BEST, name="gptq-equalized fully", equalization=1.0),
    replace(BEST, name="gptq-equalized, int8 first layer", float_first=False),
    replace(BEST, name="gptq-equalized, 99.99th percentile", activation_range=activation_ranges.percentile),
    replace(BEST, name="gptq-equalized, least squared error", activation_range=activation_ranges.mse),
    replace(BEST, name="gptq-equalized, entropy", activation_range=activation_ranges.entropy),
]
HEAD = [
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
Files = dict[FileKey, bytes]


@dataclass(frozen=True)
class Measurement:
    """One recipe's file in one engine."""

    recipe: str
    seconds: float  # to make the files of the recipe
    result: ParityResult

    def cells(self) -> list[str]:
        row = self.result
        sizes = [f"{row.n}", f"{row.bytes / 1e6:.1f}"]
        shares = [f"{row.top1:.3f}", f"{row.agreement:.3f}"]
        dp = [f"{row.mean_dp:.4f}", f"{row.p99_dp:.3f}", f"{row.max_dp:.3f}"]
        times = [f"{row.ms:.0f}", f"{self.seconds:.0f}"]
        return [self.recipe, row.format, row.engine, *sizes, *shares, *dp, *times]


def main(run_folder: str, *only: str) -> int:
    """Measures the recipes called `only` (none given: all) and writes both tables."""
    run = open_run(Path(run_folder))
    model = serving_model(run)
    size = (model.inputs[0].shape[1], model.inputs[0].shape[2])
    calibration = read_photos(run.dataset, "train", size, CALIBRATION_PHOTOS).pixels
    photos = read_photos(run.dataset, "val", size, PHOTOS)
    outputs = predict(model, photos.pixels, lambda done: None)
    reference = ParityReference(photos.pixels, photos.truth, outputs["probabilities"])
    measurements: list[Measurement] = []
    for name, make in recipes(model, calibration).items():
        if not only or name in only:
            start = time.monotonic()
            files = make()
            seconds = time.monotonic() - start
            rows = run_parity(files, reference, ENGINES)
            measurements += [Measurement(name, seconds, row) for row in rows]
            print(f"{name}: {seconds:.0f} s", *rows, sep="\n  ", file=sys.stderr, flush=True)
    write(measurements)
    return 0


def recipes(model: keras.Model, calibration: NDArray[np.uint8]) -> dict[str, Callable[[], Files]]:
    """The function that makes the files of each recipe, by name."""

    def with_recipe(recipe: Recipe) -> Files:
        quantized = quantize(model, calibration, recipe)
        return {
            FileKey(format, "int8"): convert(model, quantized) for format, convert in INT8_CONVERTERS.items()
        }

    made: dict[str, Callable[[], Files]] = {
        "the libraries' defaults": lambda: library_defaults(model, calibration, reduce_range=False),
        "the libraries' defaults, reduce_range": lambda: library_defaults(
            model, calibration, reduce_range=True
        ),
    }
    return made | {recipe.name: (lambda recipe=recipe: with_recipe(recipe)) for recipe in COMPARED}


def library_defaults(model: keras.Model, calibration: NDArray[np.uint8], reduce_range: bool) -> Files:
    """The int8 files of TFLiteConverter and of ONNX Runtime's quantize_static, with their default options.

    TFLiteConverter has no `reduce_range`, so with it there is only an ONNX file.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.photos = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            photo = next(self.photos, None)
            return None if photo is None else {"image": photo[np.newaxis]}

    with tempfile.TemporaryDirectory() as folder:
        float32, int8 = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        float32.write_bytes(onnx_converter.float32(model))
        quantization.quantize_static(float32, int8, Reader(), per_channel=True, reduce_range=reduce_range)
        files = {FileKey("onnx", "int8"): int8.read_bytes()}
        if not reduce_range:
            save_serving_model(model, Path(folder) / "saved", batch=1)
            converter = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "saved"))
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([photo[np.newaxis]] for photo in calibration)
            files[FileKey("tflite", "int8")] = converter.convert()
    return files


def write(measurements: list[Measurement]) -> None:
    """Prints the Markdown table and writes benchmarks/int8.csv."""
    lines = [measurement.cells() for measurement in measurements]
    with (Path(__file__).parent / "int8.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *lines])
    print(f"Measured on {describe_machine()}.\n")
    for line in [HEAD, ["---"] * len(HEAD), *lines]:
        print(table_row(*line))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
