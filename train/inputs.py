"""The first stage of training: check the output folder and find the photos, before TensorFlow is loaded.

TensorFlow needs about five seconds to start. Errors in paths and photos appear before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from runtime.common.text import printable
from train.cache import cache_folder
from train.config import TrainConfig
from train.data.class_weights import print_class_balance
from train.data.dataset import SPLITS, Dataset, LeftOut
from train.data.find_photos import find_photos
from train.data.synthetic import SYNTHETIC_VERSION, draw_flowers
from train.data.tf_flowers import Unreachable, flower_photos
from train.features.ray_address import check_ray_address
from train.run_writer import check_output_dir

SYNTHETIC_PER_CLASS = 60  # pictures drawn without photos and without --limit: about 30 seconds


@dataclass(frozen=True)
class Inputs:
    """The photos of a run, its start time, and whether it replaces the run folder that exists."""

    dataset: Dataset
    started: datetime  # UTC
    overwrite: bool


def find_inputs(config: TrainConfig) -> Inputs:
    """Check `config.out` and `config.ray`, find and split the photos, and print their counts.

    Raises RunError for the output folder, ClusterError for the cluster and PhotosError for the photos.
    """
    started = datetime.now(timezone.utc)
    overwrite = check_output_dir(config.out, config.overwrite, config.resume, config.dry_run)
    if config.ray:
        check_ray_address(config.ray)
    settings = config.settings
    dataset = find_photos(
        config.photos or default_photos(settings.limit),
        split_seed=settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        limit=settings.limit,
        none=config.none,
        negatives=settings.negatives,
    )
    counts = ", ".join(f"{len(dataset.split(split)):,} {split}" for split in SPLITS)
    classes = f"{len(dataset.classes)} classes: {', '.join(dataset.classes)}"
    print(printable(f"photos: {dataset.root}: {counts}; {classes}"))
    print_left_out(dataset.left_out)
    print_class_balance(dataset, settings.class_weight)
    return Inputs(dataset, started, overwrite)


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
        print(f"left out: {len(new) - 3:,} more; left_out.csv in the run folder lists all")
