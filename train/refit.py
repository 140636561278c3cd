"""Fit the unknown-picture detector of a run again, with new photos of none of the classes.

The network and its head stay as they are. This takes about 5 minutes for 1,700 photos and a compressed
network on 2 cores; fine-tuning and compression take about an hour each. Training with the same photos works
better.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.cli import ArgumentParser, path_name
from runtime.common.errors import PictureError
from runtime.common.terminal import suppress_native_stderr
from runtime.common.text import printable
from runtime.preprocess.photo_files import NONE_LABEL
from runtime.preprocess.picture import read_picture
from train.cache import cache_folder
from train.cli import add_run_flags, run_cli
from train.data.augment import negative_view_count, read_view, view_count
from train.data.class_weights import NEGATIVE
from train.data.dataset import SPLITS, Dataset, LeftOut, Photo, PhotosError, read_verified
from train.data.find_photos import with_negatives_of
from train.data.negatives import (
    add_default_negatives,
    default_rows,
    print_negatives,
    restore_default_negatives,
)
from train.inputs import print_left_out
from train.progress import Progress
from train.run import Run, RunError, open_run
from train.run_writer import (
    RunContents,
    check_output_dir,
    lock_output,
    package_versions,
    print_run,
    write_run,
)

if TYPE_CHECKING:
    import keras

    from train.evaluation import SplitFeatures
    from train.network.vgg import Weights
    from train.train_head import TrainedHead

# TensorFlow warns about models that are built more than once, as here.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

VIEWS = 2  # of each training photo: the photo and its mirror image


@dataclass(frozen=True)
class RefitConfig:
    """The options of the command."""

    run: Path
    none: Path | None = None  # None: the negatives of the run, or else the default ones
    out: Path | None = None  # None: runs/NAME-refitted
    photos_root: Path | None = None  # None: where the photos were during training
    add: Path | None = None  # the same for the photos of --add
    overwrite: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 success, 2 error."""
    parser = ArgumentParser(
        prog="python -m train.refit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=path_name, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--none",
        type=path_name,
        metavar="DIR",
        help="folder of photos of none of the classes, to use with the drawings that come with the project "
        "(default: the photos and drawings of the run, or else the drawings alone)",
    )
    parser.add_argument(
        "--photos-root", type=path_name, metavar="DIR", help="the folder of the run's photos, if it has moved"
    )
    parser.add_argument(
        "--add",
        type=path_name,
        metavar="DIR",
        help="the folder that --add named in training, if it has moved",
    )
    add_run_flags(parser.add_argument_group("files"), "runs/NAME-refitted", resume=False)
    config = RefitConfig(**vars(parser.parse_args(argv)))
    return run_cli(lambda: refit(config), lambda: "no run was written")


def refit(config: RefitConfig) -> int:
    """Fit the detector again and write the result as another run. Returns exit code 0.

    Raises UserError for a run without a detector, for its photos and for the output folder.
    """
    run = open_run(config.run, config.photos_root, added=config.add)
    if "known" not in run.thresholds:
        raise RunError(f"run {run.path}: has no detector of unknown pictures; train it without --no-known")
    out = config.out or Path("runs") / f"{run.name}-refitted"
    with lock_output(out):
        overwrite = check_output_dir(out, config.overwrite, resume=False)
        contents = fit_detector(run, choose_negatives(run, config.none), out)
        write_run(out, contents, overwrite)
    print_run(out, contents)
    print(printable(f"next: python -m export {shlex.quote(str(out))} --int8"))
    return 0


def fit_detector(run: Run, dataset: Dataset, out: Path) -> RunContents:
    """The run with a detector that is fitted on the negatives of `dataset`, for the folder `out`."""
    with suppress_native_stderr():  # TensorFlow's messages at import
        from train.evaluation import calibrate_and_evaluate
        from train.network.heads import build_classifier

    model = run.load_model()
    weights, head = take_apart(run, model)
    photos, negatives = compute_features(run, dataset, weights)
    evaluation = calibrate_and_evaluate(
        head,
        photos,
        negatives,
        run.classes,
        known=True,
        defaults=default_rows(dataset),
    )
    record = record_of(run, out, evaluation.temperature) | {
        "thresholds": evaluation.thresholds,
        "metrics": evaluation.summaries,
    }
    classifier = build_classifier(weights, head.head, evaluation.novelty_model)
    return RunContents(
        record, dataset, classifier, history_of(run), evaluation, uncompressed=run.uncompressed_classes()
    )


def choose_negatives(run: Run, none: Path | None) -> Dataset:
    """The run's photos with the negatives to fit on. Raises PhotosError."""
    dataset, settings = run.dataset, run.settings
    shares, seed = {"val": settings["val_share"], "test": settings["test_share"]}, settings["split_seed"]
    if none:
        dataset = with_negatives_of(dataset, none, shares, seed)
        dataset = _without_unreadable(dataset, none)
        if settings["near_duplicates"] != "ignore":
            from train.data.near_duplicates import without_near_duplicate_negatives  # late: imagehash

            dataset = without_near_duplicate_negatives(dataset, cache_folder("features"))
        print_left_out(dataset.left_out, run.dataset.left_out)
    if none or not dataset.negatives:
        val, test = shares["val"], shares["test"]
        dataset = add_default_negatives(dataset, split_seed=seed, val_share=val, test_share=test)
    else:
        restore_default_negatives(dataset)
    print_negatives(dataset)
    return dataset


def _without_unreadable(dataset: Dataset, none: Path) -> Dataset:
    """The data set without negatives that cannot be decoded. Raises PhotosError if none is left."""

    def unreadable(photo: Photo) -> LeftOut | None:
        try:
            read_picture(read_verified(dataset, photo))
        except PictureError as error:
            return LeftOut(photo.path, printable(str(error)))
        return None

    with ThreadPoolExecutor(2) as pool:
        left_out = [item for item in pool.map(unreadable, dataset.negatives) if item]
    if len(left_out) == len(dataset.negatives):
        raise PhotosError(f"--none {none}: no readable photo in this folder; add some, or leave out --none")
    return dataset.without(left_out)


def take_apart(run: Run, model: keras.Model) -> tuple[Weights, TrainedHead]:
    """The convolutions and the pooled head of a run's model."""
    import keras

    from train.network.heads import HEADS
    from train.network.vgg import Weights, tensors_of
    from train.settings import RECIPES
    from train.train_head import TrainedHead

    _, height, width, _ = model.inputs[0].shape
    source = str(run.settings.get("weights"))
    weights = Weights(tensors_of(model.layers), run.base_sha256, source, (height, width))
    head = HEADS["pooled"](len(run.classes), RECIPES["pooled"])
    pooled_shape = (1, 1, weights.output_shape("block5_pool")[2])
    reducer = keras.Sequential([keras.Input(pooled_shape), head[0]])
    classifier = keras.Sequential([keras.Input(pooled_shape[-1:]), *head[1:]])
    next(layer for layer in head if layer.name == "logits").set_weights(
        model.get_layer("logits").get_weights()
    )
    pooled = np.empty((0, 0), np.float32)  # of the training pictures: there is no training
    return weights, TrainedHead((), head, reducer, classifier, (), interrupted=False, pooled=pooled)


def compute_features(
    run: Run, dataset: Dataset, weights: Weights
) -> tuple[dict[str, SplitFeatures], dict[str, SplitFeatures]]:
    """The features of the photos and of the negatives, by split. Raises PhotosError, PictureError."""
    jobs = {
        (kind, split): [(photo, view) for view in range(count(split, VIEWS)) for photo in photos(split)]
        for kind, count, photos in (
            ("photos", view_count, dataset.split),
            ("negatives", negative_view_count, dataset.negatives_of),
        )
        for split in SPLITS
    }
    with Progress("features", sum(map(len, jobs.values())), "pictures") as progress:
        features = {
            key: _features(dataset, pictures, run.classes, weights, progress)
            for key, pictures in jobs.items()
        }
    photos, negatives = (
        {split: features[kind, split] for split in SPLITS} for kind in ("photos", "negatives")
    )
    return photos, negatives


def record_of(run: Run, out: Path, divisor: float) -> dict[str, Any]:
    """The record of the run for another folder. `divisor` is applied to its logits again."""
    record: dict[str, Any] = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    return record | {
        "name": out.name,
        "settings": dict(run.settings),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "temperature": record.get("temperature", 1.0) * divisor,
        "refitted": {"from": run.name},
    }


def history_of(run: Run) -> list[dict[str, object]]:
    """The rows of history.csv, with numbers as floats. Raises RunError."""
    try:
        with (run.path / "history.csv").open(newline="", encoding="utf-8") as file:
            rows = [
                {name: value if name == "stage" else float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
        if not all({"stage", "epoch", "loss", "accuracy"} <= row.keys() for row in rows):
            raise ValueError("a line is incomplete")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"run {run.path}: history.csv cannot be read ({reason}); restore it") from None
    return rows


def _features(
    dataset: Dataset,
    pictures: Sequence[tuple[Photo, int]],
    classes: tuple[str, ...],
    weights: Weights,
    progress: Progress,
) -> SplitFeatures:
    """The features of pictures, each a photo and a view, with the index of their class."""
    from train.compress.features import BATCH, channel_means_of
    from train.evaluation import SplitFeatures

    def read(picture: tuple[Photo, int]) -> NDArray[np.uint8]:
        return read_view(dataset, *picture, weights.input_size)

    with ThreadPoolExecutor(2) as pool:
        batches = (
            np.stack([*pool.map(read, pictures[start : start + BATCH])])
            for start in range(0, len(pictures), BATCH)
        )
        means = channel_means_of(weights, batches, len(pictures), progress.step)
    labels = [NEGATIVE if photo.label == NONE_LABEL else classes.index(photo.label) for photo, _ in pictures]
    return SplitFeatures(means[-1][:, np.newaxis, np.newaxis, :], np.array(labels, np.int32), means)


if __name__ == "__main__":
    sys.exit(main())
