"""What compression costs: accuracy, size and latency from 2 to 32 times fewer multiplications.

    python -m benchmarks.compress RUN PHOTOS COMPRESSED_RUN [EFFICIENTNET.pth] > benchmarks/compress.md

One short budget for every point: layers are solved on 200 photos and a new head is trained, nothing is
distilled. Beside it are the two plain ways to leave channels out of every layer alike, with the same head
training: those of the smallest weights (Li et al., "Pruning Filters for Efficient ConvNets", 2017), and
random ones. Then the distilled COMPRESSED_RUN, and EfficientNet-Lite0 frozen under the same head. Also writes
compress.csv, which `python -m train.compress --measured` reads, and compress.png.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from runtime.common.terminal import suppress_native_stderr
from train.run import Run, open_run

with suppress_native_stderr():
    import keras
    import tensorflow  # noqa: F401
import numpy as np
from numpy.typing import NDArray

from benchmarks.efficientnet_lite import efficientnet_lite
from benchmarks.int8 import library_defaults
from benchmarks.machine import describe_machine
from export.formats import INT8_CONVERTERS
from export.int8.quantize import quantize
from export.int8.search import CALIBRATION_PHOTOS, RECIPES
from export.macs import count_macs
from export.parity.engine_worker import run_in_engine
from export.parity.runner import ParityReference, run_parity
from export.photos import read_photos
from export.serving_model import named_outputs, predict
from runtime.inference.engines import default_threads
from train.compress.allocation import LAST, VGG16, macs
from train.compress.pipeline import SIZES, cheapest, features, price, pruning_targets, read
from train.compress.pruning import reconstruct, shorten
from train.compress.teacher_cache import with_pooled_features
from train.network.heads import build_classifier
from train.network.vgg import CONVOLUTIONS, Weights, tensors_of
from train.settings import Settings
from train.train_head import TrainedHead, train_head

REDUCTIONS = (2, 4, 8, 10, 16, 32)
SOLVED = 200  # photos
ENGINES = {"litert": "tflite", "onnx": "onnx"}
WARM, TIMED, TURNS = 10, 50, 3  # inferences, and how often all files are timed
TABLE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class Point:
    """A row of compress.csv. `top1` is of the float32 network; figures of an engine are of its int8 file."""

    way: str
    reduce: float | None  # as asked for
    size: int
    gmacs: float
    val_top1: float
    top1: float
    engine: str = ""
    mb: float | None = None
    int8_top1: float | None = None
    ms: float | None = None


def main(run_folder: str, photos: str, compressed: str, efficientnet: str = "") -> int:
    bench = Bench(open_run(Path(run_folder), Path(photos)))
    points: list[Point] = []

    def add(found: list[Point]) -> None:
        points.extend(found)
        print(*found, sep="\n", file=sys.stderr, flush=True)

    run = bench.run
    add(bench.deployed("uncompressed", 1, run.load_model(), run.metrics))
    prices = price(run.dataset, bench.tensors, bench.sample, SIZES)
    for reduce in REDUCTIONS:
        size, widths = cheapest(prices, reduce)
        add(bench.solved(reduce, size, widths))
        uniform = narrowed(size, VGG16.macs / reduce)
        for way, order in (("smallest weights go", by_weight), ("random channels go", by_chance)):
            add([bench.sliced(way, reduce, size, uniform, order)])
    small = open_run(Path(compressed), Path(photos))
    add(bench.deployed("distilled", small.compressed["reduce"], small.load_model(), small.metrics))
    if efficientnet:
        add(bench.instead(efficientnet_lite(Path(efficientnet))))
    timed = bench.timed()
    points = [replace(point, ms=timed.get(point)) for point in points]
    write(points)
    tell(points)
    draw(points)
    return 0


class Bench:
    """A run's photos and network, and what is measured on them once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tensors = tensors_of(run.load_model().layers)
        train = run.dataset.split("train")
        order = np.random.default_rng(0).permutation(len(train))
        self.sample = tuple(train[at] for at in order[:SOLVED])
        self.labels = {
            split: np.array([run.classes.index(photo.label) for photo in run.dataset.split(split)])
            for split in ("train", "val", "test")
        }
        self.files: list[tuple[Point, str, bytes, NDArray[np.uint8]]] = []
        self.pictures = cache(self._pictures)
        self.taught = cache(self._taught)

    def solved(self, reduce: float, size: int, widths: Mapping[str, int]) -> list[Point]:
        found, _ = reconstruct(self.tensors, read(self.run.dataset, self.sample, size), widths)
        whole = Weights(found, "", "")
        pooled = features(whole, self.pictures("train", size))
        wanted = pruning_targets(*self.taught())
        weights = Weights(shorten(found, pooled, wanted, widths[LAST]), "", "")
        fitted, figures = self.headed(weights, size)
        model = build_classifier(replace(weights, input_size=(size, size)), fitted.head)
        return self.deployed("least squares", reduce, model, figures)

    def sliced(
        self,
        way: str,
        reduce: float,
        size: int,
        widths: Mapping[str, int],
        order: Callable[..., NDArray[Any]],
    ) -> Point:
        """Channels left out, and nothing made up for."""
        tensors, kept = {}, np.arange(3)
        for name, filters in widths.items():
            kernel, bias = self.tensors[f"{name}/kernel"][:, :, kept], self.tensors[f"{name}/bias"]
            kept = np.sort(order(kernel)[-filters:])
            tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = kernel[..., kept], bias[kept]
        _, figures = self.headed(Weights(tensors, "", ""), size)
        top1 = figures["val"]["top1"], figures["test"]["top1"]
        return Point(way, reduce, size, macs(widths, size) / 1e9, *top1)

    def headed(self, weights: Weights, size: int) -> tuple[TrainedHead, dict[str, dict[str, float]]]:
        pooled = {
            split: features(weights, self.pictures(split, size), split)[:, np.newaxis, np.newaxis, :]
            for split in ("train", "val", "test")
        }
        return self.fitted(pooled)

    def fitted(self, pooled: Mapping[str, NDArray[Any]]) -> tuple[TrainedHead, dict[str, dict[str, float]]]:
        labels = self.labels
        train, val = ((pooled[split], labels[split].astype(np.int32)) for split in ("train", "val"))
        fitted = train_head(train, val, len(self.run.classes), replace(Settings(), views=1))
        said = {
            split: fitted.classifier.predict(fitted.reducer.predict(pooled[split], verbose=0), verbose=0)
            for split in ("val", "test")
        }
        return fitted, {
            split: {"top1": float((said[split].argmax(1) == labels[split]).mean())} for split in said
        }

    def deployed(
        self,
        way: str,
        reduce: float | None,
        model: keras.Model,
        figures: Mapping[str, Any],
        convert: Callable[[keras.Model, NDArray[np.uint8]], dict[tuple[str, str], bytes]] | None = None,
    ) -> list[Point]:
        """The model's int8 files, over all test photos, and alone on all cores."""
        model = keras.Model(model.inputs[0], named_outputs(model)["probabilities"])
        size = model.inputs[0].shape[1:3]
        calibration = read_photos(self.run.dataset, "train", size, CALIBRATION_PHOTOS).pixels
        photos = read_photos(self.run.dataset, "test", size)
        files = (convert or by_the_ladder)(model, calibration)
        outputs = predict(model, photos.pixels, lambda done: None)["probabilities"]
        reference = ParityReference(photos.pixels, photos.truth, outputs)
        rows = {row.format: row for row in run_parity(files, reference, list(ENGINES))}
        found = []
        for engine, format in ENGINES.items():
            data, row = files[format, "int8"], rows[format]
            gmacs, mb = count_macs(data, format) / 1e9, len(data) / 1e6
            top1 = figures["val"]["top1"], row.reference_top1
            found.append(Point(way, reduce, size[0], gmacs, *top1, row.engine, mb, row.top1))
            self.files.append((found[-1], engine, data, photos.pixels[: WARM + TIMED]))
        return found

    def timed(self) -> dict[Point, float]:
        """Milliseconds by point, in one go at the end: each file alone on all cores, in turns."""
        ms: dict[Point, list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "photos.npy"
            for _ in range(TURNS):
                for point, engine, data, pixels in self.files:
                    np.save(path, pixels)
                    taken = run_in_engine(data, engine, path, WARM + TIMED, default_threads()).ms[WARM:]
                    ms[point].append(float(np.median(taken)))
        return {point: float(np.median(medians)) for point, medians in ms.items()}

    def instead(self, base: keras.Model) -> list[Point]:
        size = base.inputs[0].shape[1]
        pooled = {
            split: base.predict(self.pictures(split, size), batch_size=32, verbose=0)[
                :, np.newaxis, np.newaxis
            ]
            for split in ("train", "val", "test")
        }
        fitted, figures = self.fitted(pooled)
        x = base.outputs[0]
        for layer in fitted.head[1:]:
            x = layer(x)
        model = keras.Model(base.inputs[0], x)

        def convert(model: keras.Model, calibration: NDArray[np.uint8]) -> dict[tuple[str, str], bytes]:
            return library_defaults(model, calibration, reduce_range=False)

        return self.deployed("EfficientNet-Lite0, frozen", None, model, figures, convert)

    def _taught(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pooled features and probabilities of the uncompressed model for the training photos' first view."""
        said, pooled = with_pooled_features(self.run.load_model()).predict(
            self.pictures("train", 224), batch_size=16, verbose=0
        )
        return pooled, said

    def _pictures(self, split: str, size: int) -> NDArray[np.uint8]:
        return read(self.run.dataset, self.run.dataset.split(split), size)


def by_the_ladder(model: keras.Model, calibration: NDArray[np.uint8]) -> dict[tuple[str, str], bytes]:
    """The int8 files of the first recipe that export tries."""
    quantized = quantize(model, calibration, RECIPES[0])
    return {(format, "int8"): convert(model, quantized) for format, convert in INT8_CONVERTERS.items()}


def narrowed(size: int, most_macs: float) -> dict[str, int]:
    """The same share of every layer's channels, as large as fits."""
    found = [
        {name: max(round(filters * share), 1) for name, filters in CONVOLUTIONS.items()}
        for share in np.linspace(0.01, 1, 500)
    ]
    return [widths for widths in found if macs(widths, size) <= most_macs][-1]


def by_weight(kernel: NDArray[np.float32]) -> NDArray[np.intp]:
    """Channels, those of the smallest weights first."""
    return np.argsort(np.abs(kernel).sum((0, 1, 2)), kind="stable")


def by_chance(kernel: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.random.default_rng(kernel.shape).permutation(kernel.shape[3])


def write(points: list[Point]) -> None:
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        for point in points:
            told = asdict(point).items()
            writer.writerow({name: round(of, 4) if isinstance(of, float) else of for name, of in told})


def tell(points: list[Point]) -> None:
    """The table on stdout: a row a network, both engines' figures in it."""
    print(f"Measured on {describe_machine()}.\n")
    head = ["way", "times fewer", "input", "GMAC", "top-1, val", "top-1, test"]
    engines = sorted({point.engine for point in points if point.engine})
    for engine in engines:
        head += [f"int8 in {engine}", "MB", "ms"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    whole = VGG16.macs / 1e9
    keys = list(dict.fromkeys((point.way, point.reduce) for point in points))
    for key in keys:
        mine = {point.engine: point for point in points if (point.way, point.reduce) == key}
        first = next(iter(mine.values()))
        cells = [first.way, f"{whole / first.gmacs:.1f}", str(first.size), f"{first.gmacs:.2f}"]
        cells += [f"{first.val_top1:.1%}", f"{first.top1:.1%}"]
        for engine in engines:
            point = mine.get(engine)
            if point and point.int8_top1 is not None:
                cells += [f"{point.int8_top1:.1%}", f"{point.mb:.1f}", f"{point.ms:.1f}"]
            else:
                cells += [""] * 3
        print(f"| {' | '.join(cells)} |")


def draw(points: list[Point]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    whole = VGG16.macs / 1e9
    colours = {
        "least squares": "#2f6f4f",
        "smallest weights go": "#b7791f",
        "random channels go": "#9aa5b1",
    }
    for way, colour in colours.items():
        mine = [point for point in points if point.way == way and point.engine in ("", *_first(points))]
        axes[0].plot(
            [whole / point.gmacs for point in mine],
            [100 * point.top1 for point in mine],
            marker="o",
            color=colour,
            label=way,
        )
    for point in points:
        if point.way in ("distilled", "uncompressed") and point.engine in _first(points):
            axes[0].plot(whole / point.gmacs, 100 * point.top1, "*", ms=13, color="#1a365d")
            axes[0].annotate(
                point.way, (whole / point.gmacs, 100 * point.top1), (6, 5), textcoords="offset points"
            )
    axes[0].set_xscale("log", base=2)
    axes[0].set(xlabel="times fewer multiplications", ylabel="top-1 on test photos, %", title="float32")
    ticks = [1, *REDUCTIONS]
    axes[0].set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes[0].legend(frameon=False, loc="lower left")
    styles = dict(zip(_engines(points), "os", strict=False))
    for engine, marker in styles.items():
        mine = [point for point in points if point.engine == engine]
        line = [point for point in mine if point.way in ("uncompressed", "least squares")]
        shares = [100 * (point.int8_top1 or 0) for point in line]
        axes[1].plot(
            [point.ms for point in line],
            shares,
            marker=marker,
            color="#2f6f4f",
            label=engine,
            alpha=1 if marker == "o" else 0.5,
        )
        for point in mine:
            if point.way not in ("uncompressed", "least squares"):
                axes[1].plot(point.ms, 100 * (point.int8_top1 or 0), marker, ms=9, color="#1a365d")
                if marker == "o":
                    axes[1].annotate(
                        point.way,
                        (point.ms or 0, 100 * (point.int8_top1 or 0)),
                        (7, -14 if point.reduce is None else 4),
                        textcoords="offset points",
                    )
    axes[1].set_xscale("log")
    axes[1].set_xticks((1, 2, 5, 10, 20), ("1", "2", "5", "10", "20"))
    axes[1].minorticks_off()
    axes[1].set(xlabel="ms a photo, int8, all cores", title="int8 in the engines")
    axes[1].legend(frameon=False, loc="lower right")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e5e8eb")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


def _engines(points: list[Point]) -> list[str]:
    return list(dict.fromkeys(point.engine for point in points if point.engine))


def _first(points: list[Point]) -> list[str]:
    return _engines(points)[:1]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
