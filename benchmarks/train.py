"""Compare `python -m train --recipe article` with a tutorial loop that runs the frozen base in every epoch.

    python -m benchmarks.train PHOTOS [--counts 250 …] [--full 250] > benchmarks/train.md

PHOTOS holds train/ and test/. The benchmark takes 250 to 2,000 photos of train/, a fifth of them for
validation. Both methods use the same photos for ten epochs, each in its own process, timed from the start of
the process and without a pass over test/. The tutorial loop runs its first epoch and two warm ones; its
remaining epochs are extrapolated from the warm ones. At --full photos it runs all ten, and both models are
measured on test/, outside the time. Also writes train.png and train.csv, whose rows of other counts stay, so
that the benchmark can run in parts.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, kilobytes_to_mb
from benchmarks.markdown_table import table_head, table_row

ROOT = Path(__file__).parents[1]
COUNTS = (250, 500, 1000, 2000)
TABLE = Path(__file__).with_suffix(".csv")
EPOCHS = 10
VGG_EDGE, TUTORIAL = "vgg-edge", "tutorial loop"


@dataclass(frozen=True)
class TrainingCost:
    method: str
    photos: int
    epochs_run: int
    seconds: float  # from the start of the process to the end of the tenth epoch, or of the command
    photos_per_second: float  # through the base: once in vgg-edge, in every epoch of the tutorial loop
    peak_gb: float  # resident memory
    val_top1: float
    test_top1: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--full", type=int, nargs="*", default=[250])
    arguments = parser.parse_args()
    costs = [cost for cost in read_csv() if cost.photos not in arguments.counts]
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.counts:
            run = Path(folder) / f"{count}"
            full = count in arguments.full
            costs.append(measure_vgg_edge(arguments.photos, run, count, full))
            costs.append(measure_tutorial(arguments.photos, run, count, full))
            print(*costs[-2:], sep="\n", file=sys.stderr, flush=True)
            write_csv(costs)
    print_table(costs)
    draw_chart(costs)
    return 0


def measure_vgg_edge(photos: Path, run: Path, count: int, full: bool) -> TrainingCost:
    classes = len([path for path in (photos / "train").iterdir() if path.is_dir()])
    command = [sys.executable, "-m", "train", photos / "train", "--recipe", "article", "--out", run]
    command += ["--limit", count // classes, "--val-share", "0.2", "--test-share", "0", "--cache", "none"]
    command += ["--epochs", EPOCHS]
    seconds, peak, lines = run_timed([str(part) for part in command])
    rate = max(float(line.split(" pictures/s")[0].split()[-1]) for line in lines if "pictures/s" in line)
    record = json.loads((run / "run.json").read_text())
    test = run_child("score", run, photos / "test")["top1"] if full else None
    return TrainingCost(VGG_EDGE, count, EPOCHS, seconds, rate, peak, record["metrics"]["val"]["top1"], test)


def measure_tutorial(photos: Path, run: Path, count: int, full: bool) -> TrainingCost:
    epochs = EPOCHS if full else 3
    record = run_child("tutorial", run, photos / "test" if full else "", epochs)
    warm = record["epochs"][1:]
    warm_seconds = sum(warm) / len(warm)
    return TrainingCost(
        TUTORIAL,
        count,
        epochs,
        record["start"] + sum(record["epochs"]) + (EPOCHS - epochs) * warm_seconds,
        count / warm_seconds,
        record["peak_gb"],
        record["val_top1"],
        record["test_top1"],
    )


def train_tutorial(run: str, test: str, epochs: str) -> dict[str, Any]:
    """The usual tutorial: pictures as arrays in memory, VGG16 with frozen layers, a new head, `fit`."""
    import keras

    from train.run import open_run

    dataset = open_run(Path(run)).dataset

    def arrays(split: str) -> Any:
        photos = dataset.split(split)
        labels = [dataset.classes.index(photo.label) for photo in photos]
        pixels = read_pixels([dataset.root / photo.path for photo in photos])
        return pixels, keras.utils.to_categorical(labels, len(dataset.classes))

    stamps: list[float] = []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: object = None) -> None:
            stamps.append(time.time())

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            stamps.append(time.time())
            print(f"tutorial loop: epoch {epoch + 1} of {epochs}", file=sys.stderr, flush=True)

    model = tutorial_model(len(dataset.classes))
    x, y = arrays("train")
    history = model.fit(
        x,
        y,
        validation_data=arrays("val"),
        batch_size=32,
        epochs=int(epochs),
        callbacks=[Clock()],
        verbose=0,
    ).history
    return {
        "start": stamps[0] - float(os.environ["STARTED"]),
        "epochs": [after - before for before, after in itertools.pairwise(stamps)],
        "val_top1": history["val_accuracy"][-1],
        "test_top1": top1(model, dataset.classes, test) if test else None,
    }


def tutorial_model(classes: int) -> Any:
    import keras

    from train.network.vgg import base_layers, load_weights, picture_input, read_weights

    image = picture_input()
    base = keras.Model(image, base_layers(image))
    load_weights(base, read_weights())
    base.trainable = False
    head = [
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(classes, activation="softmax"),
    ]
    model = keras.Sequential([base, *head])
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", metrics=["accuracy"])
    return model


def score_run(run: str, test: str) -> dict[str, Any]:
    from train.run import open_run

    opened = open_run(Path(run))
    return {"top1": top1(opened.load_model(), opened.classes, test)}


def top1(model: Any, classes: tuple[str, ...], test: str) -> float:
    files = [(path, folder.name) for folder in sorted(Path(test).iterdir()) for path in folder.iterdir()]
    pixels = read_pixels([path for path, _ in files])
    outputs = model.predict(pixels, batch_size=32, verbose=0)
    predicted = (outputs[0] if isinstance(outputs, list) else outputs).argmax(1)
    correct = [classes[index] == label for index, (_, label) in zip(predicted, files, strict=True)]
    return sum(correct) / len(correct)


def read_pixels(paths: list[Path]) -> Any:
    import numpy as np

    from runtime.preprocess.picture import read_picture

    return np.stack([read_picture(path) for path in paths])


def run_child(*arguments: object) -> dict[str, Any]:
    """Run a function of CHILDREN in a process of this module. Its result and the peak memory in GB."""
    _, peak, lines = run_timed([sys.executable, "-m", "benchmarks.train", "child", *map(str, arguments)])
    result: dict[str, Any] = json.loads(lines[-1])
    return {**result, "peak_gb": peak}


def run_timed(command: list[str]) -> tuple[float, float, list[str]]:
    """The seconds, the peak resident memory in GB, and the lines of stdout and stderr of a command."""
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "STARTED": str(time.time()), "TF_CPP_MIN_LOG_LEVEL": "3"}
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        output.seek(0)
        lines = output.read().splitlines()
    if status:
        raise SystemExit("\n".join([f"{command} failed", *lines[-20:]]))
    return seconds, kilobytes_to_mb(usage.ru_maxrss) / 1e3, lines


def read_csv() -> list[TrainingCost]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return [
            TrainingCost(
                row["method"],
                int(row["photos"]),
                int(row["epochs_run"]),
                float(row["seconds"]),
                float(row["photos_per_second"]),
                float(row["peak_gb"]),
                float(row["val_top1"]),
                float(row["test_top1"]) if row["test_top1"] else None,
            )
            for row in csv.DictReader(file)
        ]


def write_csv(costs: list[TrainingCost]) -> None:
    """Write train.csv, sorted by the number of photos."""
    costs.sort(key=lambda cost: cost.photos)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(TrainingCost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cost) for cost in costs)


def print_table(costs: list[TrainingCost]) -> None:
    print(f"Measured on {describe_machine()}.\n")
    print(
        table_head(
            *("photos", "method", "epochs run", "s to 10 epochs", "photos/s", "peak GB"),
            *("val top-1", "test top-1", "times faster"),
        )
    )
    names = {VGG_EDGE: "`python -m train --recipe article`", TUTORIAL: "tutorial loop"}
    for cost in costs:
        tutorial = next(one for one in costs if one.photos == cost.photos and one.method == TUTORIAL)
        test = "" if cost.test_top1 is None else f"{cost.test_top1:.1%}"
        faster = f"{tutorial.seconds / cost.seconds:.1f}" if cost.method == VGG_EDGE else ""
        row = table_row(
            f"{cost.photos:,}",
            names[cost.method],
            str(cost.epochs_run),
            f"{cost.seconds:,.0f}",
            f"{cost.photos_per_second:.1f}",
            f"{cost.peak_gb:.1f}",
            f"{cost.val_top1:.1%}",
            test,
            faster,
        )
        print(row)


def draw_chart(costs: list[TrainingCost]) -> None:
    """Write train.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method, colour in ((TUTORIAL, "#9aa5b1"), (VGG_EDGE, "#2f6f4f")):
        rows = [cost for cost in costs if cost.method == method]
        photos, minutes = [cost.photos for cost in rows], [cost.seconds / 60 for cost in rows]
        axis.plot(photos, minutes, marker="o", color=colour)
        axis.annotate(method, (photos[-1], minutes[-1]), (-4, 8), textcoords="offset points", ha="right")
    axis.set(xlabel="photos", ylabel="minutes for ten epochs", title="The frozen base runs once per photo")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e5e8eb")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"tutorial": train_tutorial, "score": score_run}

if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        sys.exit(0)
    sys.exit(main())
