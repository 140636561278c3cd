"""What compression costs: accuracy, size and latency with 2 to 32 times fewer multiplications.

    python -m benchmarks.compress RUN PHOTOS COMPRESSED_RUN... [--efficientnet PTH] [--mobilenet H5]
        > benchmarks/compress.md

All networks but the COMPRESSED_RUNs get the same short training: layers are reconstructed on 200 photos, and
a new head is trained without distillation. For comparison, channels are removed from every layer in the same
proportion, with the same training of the head: those with the smallest weights (Li et al., "Pruning Filters
for Efficient ConvNets", 2017), and random ones. PTH is EfficientNet-Lite0 and H5 is MobileNetV2
(benchmarks/mobile_networks.py), with a head of the same kind, frozen and fine-tuned.

The COMPRESSED_RUNs are distilled: the two of models/, and one for each reduction, about 10 minutes each, with

    python -m train.compress models/flowers_run --reduce X --epochs 4 --views 3 --reconstruction-photos 200

For "others named", python -m train.refit has fitted the detectors of RUN and of these runs with drawings.

"others named" is the share of the unrelated pictures of benchmarks/known.py that the float32 network gives a
label: by its detector, or, without one, by the probability. The threshold rejects 1.75 % of the validation
photos.

Also writes compress.csv, which `python -m train.compress --latency-table` reads, and compress.png.
"""

from __future__ import annotations

import argparse
import csv
import pickle
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table_head, table_row
from runtime.common.terminal import suppress_native_stderr
from train.run import Run, open_run

with suppress_native_stderr():
    import keras
    import tensorflow  # noqa: F401
import numpy as np
from numpy.typing import NDArray

from benchmarks.compress_chart import draw, read_rows
from benchmarks.int8 import library_defaults
from benchmarks.known import unrelated_pictures
from benchmarks.machine import describe_machine
from benchmarks.mobile_finetune import fine_tune
from benchmarks.mobile_networks import efficientnet_lite, mobilenet_v2
from export.formats import INT8_CONVERTERS
from export.int8.quantize import quantize
from export.int8.search import CALIBRATION_PHOTOS, RECIPES
from export.macs import count_macs
from export.parity.engine_worker import run_in_engine
from export.parity.result import FileKey
from export.parity.runner import ParityReference, run_parity
from export.photos import read_photos
from export.serving_model import named_outputs, predict
from runtime.common.atomic import atomic_write
from runtime.inference.engines import default_threads
from train.compress.allocation import LAST, VGG16, NetworkShape, choose_shape
from train.compress.features import predict_channel_means
from train.compress.photos import read_photos as read_sample
from train.compress.pruning import prune_last, pruning_targets, reconstruct
from train.compress.sensitivity import measure_costs
from train.compress.teacher import SIZES
from train.data.dataset import SPLITS
from train.network.descriptor import channel_means
from train.network.heads import build_classifier
from train.network.novelty import UNKNOWN_RATE
from train.network.vgg import CONVOLUTIONS, POOLS, Weights, tensors_of
from train.settings import Settings
from train.train_head import TrainedHead, predict_in_batches, train_head

PRUNED = ("least squares", "smallest weights removed", "random channels removed")
REDUCTIONS = (2, 4, 8, 10, 16, 32)
RECONSTRUCTION_PHOTOS = 200
ENGINES = {"litert": "tflite", "onnx": "onnx"}
WARMUP, TIMED, ROUNDS = 10, 50, 3  # inferences of a file in a round, and rounds over all files
TABLE = Path(__file__).with_suffix(".csv")

Files = dict[FileKey, bytes]
ChannelOrder = Callable[[NDArray[np.float32]], NDArray[np.intp]]  # kernel → channels, first removed first


@dataclass(frozen=True)
class Point:
    """A row of compress.csv. `top1` belongs to the float32 network, the engine's columns to its int8 file."""

    way: str
    reduce: float | None  # as requested
    size: int
    gmacs: float
    val_top1: float
    top1: float
    engine: str = ""
    mb: float | None = None
    int8_top1: float | None = None
    ms: float | None = None
    others_named: float | None = None


@dataclass(frozen=True)
class DeployedFile:
    """The int8 file of a point in one engine."""

    point: Point
    engine: str
    data: bytes
    photos: NDArray[np.uint8]  # [n, H, W, 3], to measure the time on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="the uncompressed run")
    parser.add_argument("photos", type=Path)
    parser.add_argument("compressed", type=Path, nargs="+", help="runs of python -m train.compress")
    parser.add_argument("--efficientnet", type=Path, metavar="PTH")
    parser.add_argument("--mobilenet", type=Path, metavar="H5")
    parser.add_argument(
        "--only-deployed",
        action="store_true",
        help="keep the rows of the networks without distillation, without their times",
    )
    parser.add_argument("--parts", type=Path, metavar="DIR", help="keep the files, and resume with them")
    arguments = parser.parse_args()
    if len({path.name for path in arguments.compressed}) < len(arguments.compressed):
        parser.error("two compressed runs have the same name, so --parts would mix them up; rename one")
    data = BenchmarkData(open_run(arguments.run, arguments.photos))
    run, parts = data.run, arguments.parts
    top1 = run.metrics["val"]["top1"]
    files = resumed(parts, "uncompressed", lambda: deploy(data, "uncompressed", 1, run.load_model(), top1))
    points = [file.point for file in files]
    if arguments.only_deployed:
        # Their times are of another day, or another machine.
        points += [replace(point, ms=None) for point in read_table() if point.way in PRUNED]
    else:
        pruned, new = measure_pruned(data)
        points, files = [*points, *pruned], [*files, *new]
    for path in arguments.compressed:
        files += resumed(parts, path.name, partial(deploy_compressed, data, path))
    for name, load, weights in (
        ("EfficientNet-Lite0", efficientnet_lite, arguments.efficientnet),
        ("MobileNetV2", mobilenet_v2, arguments.mobilenet),
    ):
        if weights:
            files += resumed(parts, name, partial(deploy_mobile, data, name, load, weights))
    points += [file.point for file in files if file.point not in points]
    latencies = time_files(files)
    points = [replace(point, ms=latencies.get(point, point.ms)) for point in points]
    write_table(points)
    print_table(points)
    draw([asdict(point) for point in points], VGG16.macs / 1e9, TABLE.with_suffix(".png"))
    return 0


def resumed(folder: Path | None, name: str, make: Callable[[], list[DeployedFile]]) -> list[DeployedFile]:
    """The files that `make` returns, from an earlier start of this benchmark with the same folder if it has
    them.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.pickle"
    if not path.exists():
        files = make()
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            pickle.dump(files, file)
    found: list[DeployedFile] = pickle.loads(path.read_bytes())
    return found


def measure_pruned(data: BenchmarkData) -> tuple[list[Point], list[DeployedFile]]:
    """The networks of the three ways of PRUNED for each reduction, and the files of the first way."""
    points: list[Point] = []
    files: list[DeployedFile] = []
    solved, smallest, random = PRUNED
    costs = measure_costs(data.run.dataset, data.tensors, VGG16, data.sample, SIZES)
    for reduction in REDUCTIONS:
        shape = choose_shape(costs, VGG16, reduction)
        model, val_top1 = reconstructed_model(data, shape)
        new = deploy(data, solved, reduction, model, val_top1)
        files += new
        points += [file.point for file in new]
        uniform = uniform_shape(shape.size, VGG16.macs / reduction)
        for way, order in ((smallest, by_weight), (random, by_chance)):
            points.append(sliced_point(data, way, reduction, uniform, order))
        print(*points[-4:], sep="\n", file=sys.stderr, flush=True)
    return points, files


class BenchmarkData:
    """A run's photos, labels and network; pictures and the teacher's outputs are computed once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tensors = tensors_of(run.load_model().layers)
        train = run.dataset.split("train")
        order = np.random.default_rng(0).permutation(len(train))
        self.sample = tuple(train[index] for index in order[:RECONSTRUCTION_PHOTOS])
        self.labels = {
            split: np.array([run.classes.index(photo.label) for photo in run.dataset.split(split)], np.int32)
            for split in SPLITS
        }
        self.pictures = cache(self._pictures)
        self.teacher_outputs = cache(self._teacher_outputs)

    def _pictures(self, split: str, size: int) -> NDArray[np.uint8]:
        return read_sample(self.run.dataset, self.run.dataset.split(split), size)

    def _teacher_outputs(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The uncompressed model's pooled features and probabilities for the training photos."""
        model = self.run.load_model()
        pooled = channel_means(model.get_layer(POOLS[-1]).output)
        teacher = keras.Model(model.inputs[0], [pooled, named_outputs(model)["probabilities"]])
        features, probabilities = teacher.predict(self.pictures("train", 224), batch_size=16, verbose=0)
        return features, probabilities


def reconstructed_model(data: BenchmarkData, shape: NetworkShape) -> tuple[keras.Model, float]:
    """A network solved by least squares with a new head, and its top-1 on val."""
    pictures = read_sample(data.run.dataset, data.sample, shape.size)
    tensors = reconstruct(data.tensors, pictures, shape.widths).tensors
    pooled = pooled_features(Weights(tensors, "", ""), data.pictures("train", shape.size), "train")
    targets = pruning_targets(*data.teacher_outputs())
    pruned = prune_last(tensors, pooled, targets, shape.widths[LAST])
    weights = Weights(pruned, "", "", (shape.size, shape.size))
    head, top1 = train_new_head(data, pooled_by_split(data, weights, shape.size))
    return build_classifier(weights, head.head), top1["val"]


def sliced_point(
    data: BenchmarkData, way: str, reduction: float, shape: NetworkShape, order: ChannelOrder
) -> Point:
    """A network without the first channels of `order` and without reconstruction."""
    tensors, kept = {}, np.arange(3)
    for name, filters in shape.widths.items():
        kernel, bias = data.tensors[f"{name}/kernel"][:, :, kept], data.tensors[f"{name}/bias"]
        kept = np.sort(order(kernel)[-filters:])
        tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = kernel[..., kept], bias[kept]
    _, top1 = train_new_head(data, pooled_by_split(data, Weights(tensors, "", ""), shape.size))
    return Point(way, reduction, shape.size, shape.macs / 1e9, top1["val"], top1["test"])


def uniform_shape(size: int, max_macs: float) -> NetworkShape:
    """The widest shape within `max_macs` that has the same share of every layer's channels."""
    shapes = [
        NetworkShape(size, {name: max(round(share * width), 1) for name, width in CONVOLUTIONS.items()})
        for share in np.linspace(0.01, 1, 500)
    ]
    return [shape for shape in shapes if shape.macs <= max_macs][-1]


def by_weight(kernel: NDArray[np.float32]) -> NDArray[np.intp]:
    """Channels by the sum of their absolute weights, rising."""
    return np.argsort(np.abs(kernel).sum((0, 1, 2)), kind="stable")


def by_chance(kernel: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.random.default_rng(kernel.shape).permutation(kernel.shape[3])


def pooled_by_split(data: BenchmarkData, weights: Weights, size: int) -> dict[str, NDArray[np.float32]]:
    return {split: pooled_features(weights, data.pictures(split, size), split) for split in SPLITS}


def pooled_features(weights: Weights, pictures: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    return predict_channel_means(weights, pictures, np.arange(len(pictures)), name)[-1]


def train_new_head(
    data: BenchmarkData, pooled: Mapping[str, NDArray[Any]]
) -> tuple[TrainedHead, dict[str, float]]:
    """A pooled head trained on features [n, D], and its top-1 on val and test."""
    features = {split: values[:, np.newaxis, np.newaxis] for split, values in pooled.items()}
    train, val = ((features[split], data.labels[split]) for split in ("train", "val"))
    head = train_head(train, val, len(data.run.classes), replace(Settings(), views=1))
    top1 = {}
    for split in ("val", "test"):
        probabilities = predict_in_batches(head.classifier, predict_in_batches(head.reducer, features[split]))
        top1[split] = float((probabilities.argmax(1) == data.labels[split]).mean())
    return head, top1


def deploy_compressed(data: BenchmarkData, path: Path) -> list[DeployedFile]:
    """The network of a run of `python -m train.compress`."""
    run = open_run(path, data.run.dataset.root)
    way = f"distilled, {run.compressed['epochs']} epochs"
    return deploy(data, way, run.compressed["reduce"], run.load_model(), run.metrics["val"]["top1"])


def deploy_mobile(
    data: BenchmarkData, name: str, load: Callable[[Path], keras.Model], weights: Path
) -> list[DeployedFile]:
    """A network with a new head, converted with the libraries' default options: first frozen, then with all
    layers fine-tuned.
    """
    base = load(weights)
    size = base.inputs[0].shape[1]
    pooled = {split: base.predict(data.pictures(split, size), batch_size=32, verbose=0) for split in SPLITS}
    head, top1 = train_new_head(data, pooled)
    x = base.outputs[0]
    for layer in head.head[1:]:
        x = layer(x)
    model = keras.Model(base.inputs[0], x)

    def convert(model: keras.Model, calibration: NDArray[np.uint8]) -> Files:
        return library_defaults(model, calibration, reduce_range=False)

    frozen = deploy(data, f"{name}, frozen", None, model, top1["val"], convert)
    best = fine_tune(model, data.run)
    return [*frozen, *deploy(data, f"{name}, fine-tuned", None, model, best, convert)]


def convert_with_first_recipe(model: keras.Model, calibration: NDArray[np.uint8]) -> Files:
    """The int8 files of the recipe that export tries first."""
    quantized = quantize(model, calibration, RECIPES[0])
    return {FileKey(format, "int8"): convert(model, quantized) for format, convert in INT8_CONVERTERS.items()}


def deploy(
    data: BenchmarkData,
    way: str,
    reduction: float | None,
    model: keras.Model,
    val_top1: float,
    convert: Callable[[keras.Model, NDArray[np.uint8]], Files] = convert_with_first_recipe,
) -> list[DeployedFile]:
    """The model's int8 files, measured on all test photos; latency is measured later."""
    size = model.inputs[0].shape[1:3]
    others_named = share_named(model, data.pictures("val", size[0]), unrelated_pictures(size))
    model = keras.Model(model.inputs[0], named_outputs(model)["probabilities"])
    calibration = read_photos(data.run.dataset, "train", size, CALIBRATION_PHOTOS).pixels
    photos = read_photos(data.run.dataset, "test", size)
    files = convert(model, calibration)
    outputs = predict(model, photos.pixels, lambda done: None)["probabilities"]
    reference = ParityReference(photos.pixels, photos.truth, outputs)
    rows = {row.format: row for row in run_parity(files, reference, list(ENGINES))}
    deployed = []
    for engine, format in ENGINES.items():
        file, row = files[FileKey(format, "int8")], rows[format]
        gmacs, mb = count_macs(file, format) / 1e9, len(file) / 1e6
        top1 = row.reference_top1
        point = Point(
            *(way, reduction, size[0], gmacs, val_top1, top1, row.engine, mb, row.top1),
            others_named=others_named,
        )
        deployed.append(DeployedFile(point, engine, file, photos.pixels[: WARMUP + TIMED]))
    return deployed


def share_named(model: keras.Model, photos: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """The share of `others` that get a label, where a threshold rejects UNKNOWN_RATE of the photos."""
    scores = []
    for pictures in (photos, others):
        outputs = predict(model, pictures, lambda done: None)
        scores.append(outputs["known"][:, 0] if "known" in outputs else outputs["probabilities"].max(1))
    lowest = np.sort(scores[0])[int(UNKNOWN_RATE * len(photos))]
    return float((scores[1] >= lowest).mean())


def time_files(files: Sequence[DeployedFile]) -> dict[Point, float]:
    """Milliseconds by point: each file on all cores, in rounds, so that slow minutes affect every file."""
    ms: dict[Point, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photos.npy"
        for _ in range(ROUNDS):
            for file in files:
                np.save(path, file.photos)
                result = run_in_engine(file.data, file.engine, path, WARMUP + TIMED, default_threads())
                ms[file.point].append(float(np.median(result.ms[WARMUP:])))
    return {point: float(np.median(medians)) for point, medians in ms.items()}


def read_table() -> list[Point]:
    """The points of compress.csv."""
    return [Point(**{**row, "size": int(row["size"])}) for row in read_rows(TABLE)]


def write_table(points: Sequence[Point]) -> None:
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        for point in points:
            row = asdict(point).items()
            writer.writerow({name: round(v, 4) if isinstance(v, float) else v for name, v in row})


def print_table(points: Sequence[Point]) -> None:
    """Print a Markdown table with a row for each network and three columns for each engine."""
    older = any(point.engine and point.ms is None for point in points)
    note = " The rows without ms are of an earlier day, or another machine." if older else ""
    print(f"Measured on {describe_machine()}.{note}\n")
    head = ["way", "times fewer", "input", "GMAC", "top-1, val", "top-1, test", "others named"]
    engines = sorted({point.engine for point in points if point.engine})
    for engine in engines:
        head += [f"int8 in {engine}", "MB", "ms"]
    print(table_head(*head))
    networks = list(dict.fromkeys((point.way, point.reduce) for point in points))
    for network in networks:
        by_engine = {point.engine: point for point in points if (point.way, point.reduce) == network}
        first = next(iter(by_engine.values()))
        times_fewer = VGG16.macs / 1e9 / first.gmacs
        cells = [first.way, f"{times_fewer:.1f}", str(first.size), f"{first.gmacs:.2f}"]
        cells += [f"{first.val_top1:.1%}", f"{first.top1:.1%}"]
        cells.append("" if first.others_named is None else f"{first.others_named:.1%}")
        for engine in engines:
            point = by_engine.get(engine)
            if point and point.int8_top1 is not None:
                cells += [f"{point.int8_top1:.1%}", f"{point.mb:.1f}", f"{point.ms:.1f}" if point.ms else ""]
            else:
                cells += [""] * 3
        print(table_row(*cells))


if __name__ == "__main__":
    sys.exit(main())
