"""The first stage of training: check the output folder and find the photos, before TensorFlow is loaded.

TensorFlow needs about five seconds to start. Errors in paths and photos appear before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from runtime.common.text import printable
from train.cache import cache_folder, features_in_use
from train.config import TrainConfig
from train.data.added_photos import add_photos
from train.data.class_weights import print_class_balance
from train.data.dataset import SPLITS, Dataset, LeftOut, PhotosError
from train.data.find_photos import find_photos
from train.data.negatives import add_default_negatives, print_negatives
from train.data.synthetic import SYNTHETIC_VERSION, draw_flowers
from train.data.tf_flowers import Unreachable, flower_photos
from train.features.ray_address import check_ray_address
from train.intervals import confidence_interval
from train.run import RunError
from train.run_writer import check_output_dir, lock_output
from train.settings import Settings

FEW_NEGATIVES = 10  # below this a warning is printed
SYNTHETIC_PER_CLASS = 60  # pictures drawn without photos and without --limit: about 30 seconds


@dataclass(frozen=True)
class Inputs:
    """The photos of a run, its start time, and whether it replaces the run folder that exists."""

    dataset: Dataset
    started: datetime  # UTC
    overwrite: bool


def find_inputs(config: TrainConfig, stack: ExitStack) -> Inputs:
    """Check `config.out` and `config.ray`, find and split the photos, and print their counts.

    Until `stack` is closed, no other command writes to the output folder or evicts features of this run.
    Raises RunError for the output folder, ClusterError for the cluster and PhotosError for the photos.
    """
    started = datetime.now(timezone.utc)
    _check_written_folders(config)
    if config.writes_run:
        stack.enter_context(lock_output(config.out))
    overwrite = check_output_dir(config.out, config.overwrite, config.resume, config.dry_run)
    if config.ray:
        check_ray_address(config.ray)
    if not config.dry_run:
        stack.enter_context(features_in_use(config.cache))
    dataset = _find_dataset(config)
    counts = ", ".join(f"{len(dataset.split(split)):,} {split}" for split in SPLITS)
    classes = f"{len(dataset.classes)} classes: {', '.join(dataset.classes)}"
    print(printable(f"photos: {dataset.root}: {counts}; {classes}"))
    dataset = _with_negatives(dataset, config.settings)
    if config.add:  # after the default negatives, whose number depends on the photos
        dataset = add_photos(dataset, config.add, config.settings.negatives)
    print_left_out(dataset.left_out)
    print_class_balance(dataset, config.settings.class_weight)
    return Inputs(dataset, started, overwrite)


def _check_written_folders(config: TrainConfig) -> None:
    """Raise RunError for a folder to write inside a folder of photos, where its files would become photos."""
    cache = Path(config.cache) if config.cache and config.cache != "none" else None
    for flag, written in (("--out", config.out), ("--logs", config.logs), ("--cache", cache)):
        for photos in (config.photos, config.none, config.add):
            if written and photos and written.resolve().is_relative_to(photos.resolve()):
                raise RunError(
                    f"{flag} {written}: is inside the folder of photos {photos}; give a folder outside it"
                )


def _find_dataset(config: TrainConfig) -> Dataset:
    settings = config.settings
    return find_photos(
        config.photos or default_photos(settings.limit),
        split_seed=settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        limit=settings.limit,
        none=config.none,
        negatives=settings.negatives,
        validate=not config.add,  # the added photos may be the only training photos of a class
    )


def _with_negatives(dataset: Dataset, settings: Settings) -> Dataset:
    """The data set with its own negatives and the default ones, unless they are turned off; prints their
    number, and a warning if its own are few.
    """
    if not settings.negatives:
        return dataset
    own, measured = len(dataset.negatives), len(dataset.negatives_of("test"))
    try:
        dataset = add_default_negatives(
            dataset,
            split_seed=settings.split_seed,
            val_share=settings.val_share,
            test_share=settings.test_share,
            limit=settings.limit,
        )
    except PhotosError as error:
        if not own:
            raise
        print(printable(f"warning: training uses no drawings: {error}"))
    print_negatives(dataset)
    if 0 < measured < FEW_NEGATIVES:
        _, highest = confidence_interval(0, measured)
        print(
            f"warning: {own} photos of none of the classes are few: only {measured} of them are in "
            f"test: even if the model rejects these, it may name {highest:.0%} of such pictures; add more"
        )
    return dataset


def default_photos(limit: int | None) -> Path:
    """The folder of the tf_flowers photos, or of synthetic flowers when the network is unreachable."""
    try:
        return flower_photos(cache_folder("photos"))
    except Unreachable as error:
        print(
            f"tf_flowers is unreachable ({error}); using generated pictures, and the run is marked synthetic"
        )
    count = limit or SYNTHETIC_PER_CLASS
    return draw_flowers(cache_folder("photos") / f"drawn{SYNTHETIC_VERSION}-{count}", count)


def print_left_out(left_out: Sequence[LeftOut], printed: Sequence[LeftOut] = ()) -> None:
    """Print the first three files that are not used, without those in `printed`, and count the others."""
    before = set(printed)
    new = [item for item in left_out if item not in before]
    for item in new[:3]:
        print(printable(f"left out: {item.path}: {item.reason}"))
    if len(new) > 3:
        print(f"left out: {len(new) - 3:,} more; left_out.csv in the run folder will list all")
