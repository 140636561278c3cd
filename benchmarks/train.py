"""What the article's own loop costs, the frozen base in `fit`, beside `python -m train --recipe article`.

    python benchmarks/train.py PHOTOS [--counts 250 …] [--full 250] > benchmarks/train.md

Also writes train.csv, whose rows of other counts stay, so that it can be run in parts, and train.png.

PHOTOS holds train/ and test/. Of train/, 250 to 2,000 photos are taken, a fifth of them for validation; both
ways see the same ones for ten epochs, each in a process of its own, timed from that process's start, with
no test pass. The loop is timed over its first epoch and two warm ones, the rest is reckoned from the warm
ones; at --full photos all ten are run, and both models are then measured on test/, outside the time.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # this script's own folder would hide the package train behind it

from benchmarks.machine import describe_machine  # noqa: E402

COUNTS = (250, 500, 1000, 2000)
TABLE = Path(__file__).with_suffix(".csv")
EPOCHS = 10


@dataclass(frozen=True)
class Cost:
    way: str
    photos: int
    epochs_run: int
    seconds: float  # from the process's start to the end of the tenth epoch, or of the command
    photos_per_second: float  # through the base: once for ours, in every epoch for the loop
    peak_gb: float  # resident memory
    val_top1: float
    test_top1: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--full", type=int, nargs="*", default=[250])
    arguments = parser.parse_args()
    costs = [cost for cost in read() if cost.photos not in arguments.counts]
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.counts:
            run = Path(folder) / f"{count}"
            full = count in arguments.full
            costs.append(ours(arguments.photos, run, count, full))
            costs.append(loop(arguments.photos, run, count, full))
            print(*costs[-2:], sep="\n", file=sys.stderr, flush=True)
            write(costs)
    draw_and_tell(costs)
    return 0


def ours(photos: Path, run: Path, count: int, full: bool) -> Cost:
    classes = len([path for path in (photos / "train").iterdir() if path.is_dir()])
    command = [sys.executable, "-m", "train", photos / "train", "--recipe", "article", "--out", run]
    command += ["--limit", count // classes, "--val-share", "0.2", "--test-share", "0", "--cache", "none"]
    command += ["--epochs", EPOCHS]
    seconds, peak, told = _timed([str(part) for part in command])
    rate = max(float(line.split(" pictures/s")[0].split()[-1]) for line in told if "pictures/s" in line)
    record = json.loads((run / "run.json").read_text())
    test = _child("score", run, photos / "test")["top1"] if full else None
    return Cost("ours", count, EPOCHS, seconds, rate, peak, record["metrics"]["val"]["top1"], test)


def loop(photos: Path, run: Path, count: int, full: bool) -> Cost:
    epochs = EPOCHS if full else 3
    told = _child("loop", run, photos / "test" if full else "", epochs)
    warm = told["epochs"][1:]
    rest = (EPOCHS - epochs) * sum(warm) / len(warm)
    rate = count / (sum(warm) / len(warm))
    return Cost(
        "loop",
        count,
        epochs,
        told["start"] + sum(told["epochs"]) + rest,
        rate,
        told["peak_gb"],
        told["val_top1"],
        told["test_top1"],
    )


def run_loop(run: str, test: str, epochs: str) -> dict[str, Any]:
    """The article's: pictures as arrays in memory, VGG16 with its layers frozen, a new head, `fit`."""
    import keras

    from train.network.vgg import base_layers, load_weights, picture_input, read_weights
    from train.run import open_run

    dataset = open_run(Path(run)).dataset

    def arrays(split: str) -> Any:
        photos = dataset.split(split)
        return _pixels([dataset.root / photo.path for photo in photos]), keras.utils.to_categorical(
            [dataset.classes.index(photo.label) for photo in photos], len(dataset.classes)
        )

    image = picture_input()
    base = keras.Model(image, base_layers(image))
    load_weights(base, read_weights())
    base.trainable = False
    model = keras.Sequential(
        [
            base,
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(len(dataset.classes), activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", metrics=["accuracy"])
    stamps: list[float] = []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: object = None) -> None:
            stamps.append(time.time())

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            stamps.append(time.time())
            print(f"loop: epoch {epoch + 1} of {epochs}", file=sys.stderr, flush=True)

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
        "test_top1": _top1(model, dataset.classes, test) if test else None,
    }


def run_score(run: str, test: str) -> dict[str, Any]:
    from train.run import open_run

    opened = open_run(Path(run))
    return {"top1": _top1(opened.load_model(), opened.classes, test)}


def _top1(model: Any, classes: tuple[str, ...], test: str) -> float:
    files = [(path, folder.name) for folder in sorted(Path(test).iterdir()) for path in folder.iterdir()]
    named = model.predict(_pixels([path for path, _ in files]), batch_size=32, verbose=0).argmax(1)
    right = [classes[index] == label for index, (_, label) in zip(named, files, strict=True)]
    return sum(right) / len(right)


def _pixels(paths: list[Path]) -> Any:
    import numpy as np

    from runtime.preprocess.picture import read_picture

    return np.stack([read_picture(path) for path in paths])


def _timed(command: list[str]) -> tuple[float, float, list[str]]:
    """Seconds, peak resident memory in GB, and the lines of a command's stdout and stderr."""
    with tempfile.TemporaryFile("w+") as told:
        environment = {**os.environ, "STARTED": str(time.time()), "TF_CPP_MIN_LOG_LEVEL": "3"}
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=told, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        told.seek(0)
        lines = told.read().splitlines()
    if status:
        raise SystemExit("\n".join([f"{command} failed", *lines[-20:]]))
    return seconds, usage.ru_maxrss / 1e6, lines


def _child(*arguments: object) -> dict[str, Any]:
    _, peak, lines = _timed([sys.executable, str(Path(__file__).resolve()), "_", *map(str, arguments)])
    found: dict[str, Any] = json.loads(lines[-1])
    return {**found, "peak_gb": peak}


def read() -> list[Cost]:
    """What train.csv holds."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return [
            Cost(
                row["way"],
                int(row["photos"]),
                int(row["epochs_run"]),
                *(float(row[name]) for name in ("seconds", "photos_per_second", "peak_gb", "val_top1")),
                float(row["test_top1"]) if row["test_top1"] else None,
            )
            for row in csv.DictReader(file)
        ]


def write(costs: list[Cost]) -> None:
    """benchmarks/train.csv, by the number of photos."""
    costs.sort(key=lambda cost: cost.photos)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cost) for cost in costs)


def draw_and_tell(costs: list[Cost]) -> None:
    """The table on stdout, and benchmarks/train.png."""
    print(f"Measured on {describe_machine()}.\n")
    head = ("photos", "way", "epochs run", "s to 10 epochs", "photos/s", "peak GB")
    print(f"| {' | '.join((*head, 'val top-1', 'test top-1', 'times faster'))} |")
    print("|" + "---|" * 9)
    for cost in costs:
        other = next(one for one in costs if one.photos == cost.photos and one.way == "loop")
        test = "" if cost.test_top1 is None else f"{cost.test_top1:.1%}"
        faster = f"{other.seconds / cost.seconds:.1f}" if cost.way == "ours" else ""
        name = {"ours": "`python -m train --recipe article`", "loop": "the article's loop"}[cost.way]
        print(
            f"| {cost.photos:,} | {name} | {cost.epochs_run} | {cost.seconds:,.0f} | "
            f"{cost.photos_per_second:.1f} | {cost.peak_gb:.1f} | {cost.val_top1:.1%} | {test} | {faster} |"
        )
    draw(costs)


def draw(costs: list[Cost]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for way, name, colour in (("loop", "the article's loop", "#9aa5b1"), ("ours", "vgg-edge", "#2f6f4f")):
        mine = [cost for cost in costs if cost.way == way]
        photos, minutes = [cost.photos for cost in mine], [cost.seconds / 60 for cost in mine]
        axis.plot(photos, minutes, marker="o", color=colour)
        axis.annotate(name, (photos[-1], minutes[-1]), (-4, 8), textcoords="offset points", ha="right")
    axis.set(xlabel="photos", ylabel="minutes to ten epochs", title="The frozen base runs once a photo")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e5e8eb")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["_"]:
        print(json.dumps({"loop": run_loop, "score": run_score}[sys.argv[2]](*sys.argv[3:])))
        sys.exit(0)
    sys.exit(main())
