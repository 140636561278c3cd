"""Training, from photos to a run folder, as a list of stages.

Features of the frozen layers are computed once. The head trains on them, then optionally the last blocks
together with the head. The result is calibrated, measured and written as a run folder.
"""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.cli import EXIT_INTERRUPTED
from runtime.common.errors import UserError
from runtime.common.text import printable
from runtime.preprocess.picture import PICTURE_VERSION
from train.cache import features_folder, files_to_evict
from train.config import TrainConfig
from train.data.dataset import SPLITS, Dataset
from train.data.near_duplicates import Pair, check_near_duplicates
from train.data.negatives import default_rows
from train.distributed import PROCESSES_VARIABLE, ProcessShard, check_same_inputs, init_distributed, shutdown
from train.dry_run import print_plan
from train.evaluation import Evaluation, SplitFeatures, Splits, calibrate_and_evaluate
from train.features.devices import Devices, find_devices
from train.features.extraction import Features, extract, plan_extraction
from train.features.ray_cluster import RayCluster, connect_to_ray
from train.features.store import FeatureStore
from train.finetune import fine_tune, last_frozen_layer, upper_blocks
from train.inputs import Inputs, print_left_out
from train.label_errors import suspect_labels
from train.learning_curve import learning_curve
from train.logs import TrainingLogger
from train.network.heads import build_classifier
from train.network.vgg import Weights, read_weights
from train.run_writer import (
    RunContents,
    checkpoint_dir,
    keeps_existing_run,
    package_versions,
    print_run,
    write_run,
)
from train.train_head import TrainedHead, train_head

# TensorFlow warns about models that are built more than once, which every stage here does.
logging.getLogger("tensorflow").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Compute:
    """Where features are computed: local devices, or a Ray cluster with its own."""

    devices: Devices
    cluster: RayCluster | None

    @property
    def description(self) -> str:
        text = f"{', '.join(self.devices.names)}, {self.devices.dtype}, on {keras.backend.backend()}"
        return f"{text}, {self.cluster}" if self.cluster else text


@dataclass(frozen=True)
class Extracted:
    """Features of the readable photos, and the near-duplicates among all photos (None: not searched)."""

    features: Features
    near_duplicates: Sequence[Pair] | None

    @property
    def dataset(self) -> Dataset:
        return self.features.dataset


@dataclass(frozen=True)
class Trained:
    """The trained head and base, one row per epoch with its stage, and the frozen base's pooled features
    [N, W] of the training photos. `interrupted`: Ctrl-C ended it.
    """

    head: TrainedHead
    base: Weights
    history: Sequence[Mapping[str, object]]
    pooled: NDArray[np.float32]

    @property
    def interrupted(self) -> bool:
        return self.head.interrupted


def train(config: TrainConfig, inputs: Inputs) -> int:
    """Train on `inputs` and write the run folder. Returns the exit code: 0, or 130 after Ctrl-C.

    Raises UserError when a stage cannot read or write its files.
    """
    shard = init_distributed()  # before the weights, because reading an .h5 file computes on JAX
    base = read_weights(config.weights)
    check_processes(shard, config, inputs.dataset, base)
    with open_compute(config) as compute:
        if config.dry_run:
            shutdown(shard)
            return print_dry_run(config, inputs.dataset, base, compute)
        logger = TrainingLogger(None if shard.process else config.logs, config.out)
        extracted = extract_features(config, inputs.dataset, base, compute)
    checkpoints = open_checkpoints(config, shard)
    trained = train_layers(config, extracted, base, shard, checkpoints, logger)
    if not trained.interrupted:  # after Ctrl-C in one process, the others still work
        shutdown(shard)
    code = EXIT_INTERRUPTED if trained.interrupted else 0
    if shard.process:  # process 0 alone writes the run
        return code
    if trained.interrupted and keeps_existing_run(config.out):
        return code
    evaluation = evaluate(config, extracted, trained)
    contents = run_contents(config, inputs, extracted, trained, evaluation, compute)
    logger.log_final(evaluation.summaries)
    write_run(config.out, contents, inputs.overwrite)
    if not trained.interrupted and checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    print_result(config, trained, contents)
    return code


def check_processes(shard: ProcessShard, config: TrainConfig, dataset: Dataset, base: Weights) -> None:
    """Raise UserError when the processes of this run have different inputs, or --resume."""
    options = config.settings, config.resume, config.dry_run
    check_same_inputs(shard, {"photos": dataset.sha256, "weights": base.sha256, "settings": repr(options)})
    if shard.processes > 1 and config.resume:
        shutdown(shard)
        raise UserError(f"--resume works in a single process only; run it without {PROCESSES_VARIABLE}")


@contextmanager
def open_compute(config: TrainConfig) -> Iterator[Compute]:
    """Find the devices of this machine, or connect to the Ray cluster, and print them."""
    with connect_to_ray(config.ray) if config.ray else nullcontext() as cluster:
        compute = Compute(cluster.devices if cluster else find_devices(), cluster)
        print(f"device: {compute.description}")
        yield compute


def print_dry_run(config: TrainConfig, dataset: Dataset, base: Weights, compute: Compute) -> int:
    """Print what `train` would do and an estimate of its time. Returns exit code 0.

    Raises UserError if the features would not fit into the cache.
    """
    cache = features_folder(config.cache)
    plan = plan_extraction(
        dataset,
        base,
        cache,
        views=config.views,
        layer=last_frozen_layer(config.settings.fine_tune),
        devices=compute.devices,
    )
    files_to_evict(cache, plan.files, plan.size * plan.pictures, config.cache_limit)  # raises without room
    print_plan(dataset, plan, base, compute.devices, config.settings)
    print(printable(f"would write: {config.out}"))
    return 0


def extract_features(config: TrainConfig, dataset: Dataset, base: Weights, compute: Compute) -> Extracted:
    """Search near-duplicates, then compute the output of the last frozen layer for every photo and view."""
    cache = features_folder(config.cache)
    dataset, pairs = check_near_duplicates(dataset, cache, config.settings.near_duplicates)
    features = extract(
        dataset,
        base,
        cache,
        views=config.views,
        layer=last_frozen_layer(config.settings.fine_tune),
        devices=compute.devices,
        limit=config.cache_limit,
        cluster=compute.cluster,
    )
    print_left_out(features.dataset.left_out, dataset.left_out)
    return Extracted(features, pairs)


def open_checkpoints(config: TrainConfig, shard: ProcessShard) -> Path | None:
    """The folder of checkpoints, empty unless --resume continues from it; None in processes other than 0."""
    if shard.process:
        return None
    folder = checkpoint_dir(config.out)
    if not config.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)  # so that --resume accepts the run before the first epoch ends
    return folder


def train_layers(
    config: TrainConfig,
    extracted: Extracted,
    base: Weights,
    shard: ProcessShard,
    checkpoints: Path | None,
    logger: TrainingLogger,
) -> Trained:
    """Train the head on the features, then fine-tune the blocks that --fine-tune names."""
    settings, features, classes = config.settings, extracted.features, len(extracted.dataset.classes)
    val = features.of("val")
    blocks = upper_blocks(base, settings)
    views = features.photos_and_negatives("train", settings.views)
    head = train_head(views, val, classes, settings, blocks, checkpoints, logger.log_epoch)
    history: list[Mapping[str, object]] = [{"stage": "head", **row} for row in head.history]
    if config.fine_tunes and not head.interrupted:
        views = features.photos_and_negatives("train", settings.fine_tune_views)
        head, base = fine_tune(
            head, views, val, classes, base, settings, checkpoints, logger.log_epoch, shard
        )
        history += [{"stage": settings.fine_tune, **row} for row in head.history]
    return Trained(head, base, history, head.pooled[: len(extracted.dataset.split("train"))])


def evaluate(config: TrainConfig, extracted: Extracted, trained: Trained) -> Evaluation:
    """Calibrate on val, fit the detector of unknown pictures on train, and measure val and test."""
    features, settings = extracted.features, config.settings
    photos = {split: features.of(split, settings.views) for split in SPLITS}
    negatives = {split: features.negatives_of(split) for split in SPLITS}

    def with_means(splits: Mapping[str, tuple[FeatureStore, NDArray[np.int32]]]) -> Splits:
        return {split: SplitFeatures(x, y, x.channel_means()) for split, (x, y) in splits.items()}

    added, labels = features.added()
    return calibrate_and_evaluate(
        trained.head,
        with_means(photos),
        with_means(negatives),
        extracted.dataset.classes,
        settings.known,
        SplitFeatures(added, labels, added.channel_means()) if len(added) else None,
        default_rows(extracted.dataset),
    )


def run_contents(
    config: TrainConfig,
    inputs: Inputs,
    extracted: Extracted,
    trained: Trained,
    evaluation: Evaluation,
    compute: Compute,
) -> RunContents:
    """Everything that the run folder holds."""
    record: dict[str, Any] = {
        "name": config.out.name,
        "created": inputs.started.isoformat(timespec="seconds"),
        "recipe": config.settings.recipe,
        "settings": asdict(config.settings) | {"weights": trained.base.source},
        "base_sha256": trained.base.sha256,
        "picture_version": PICTURE_VERSION,
        "versions": package_versions(),
        "device": compute.description,
        "fine_tuning_discarded": trained.head.discarded,
        "temperature": evaluation.temperature,
        "thresholds": evaluation.thresholds,
        "metrics": evaluation.summaries,
    }
    dataset = extracted.dataset
    photos, classes = dataset.split("train"), dataset.classes
    labels = np.array([classes.index(photo.label) for photo in photos], np.intp)
    return RunContents(
        record,
        dataset,
        build_classifier(trained.base, trained.head.head, evaluation.novelty_model),
        trained.history,
        evaluation,
        extracted.near_duplicates,
        suspects=suspect_labels(photos, trained.pooled, classes),
        learning_curve=learning_curve(trained.pooled, labels, len(classes)),
    )


def print_result(config: TrainConfig, trained: Trained, contents: RunContents) -> None:
    """Print the metrics, the path of the run, and the next command."""
    out = shlex.quote(str(config.out))
    if trained.interrupted:
        done = len(trained.head.history)
        fine_tuning = len(trained.history) > done
        planned = config.settings.fine_tune_epochs if fine_tuning else config.settings.epochs
        stopped = f"stopped after {done} of {planned} epochs; the run holds the best epoch so far"
        print(printable(f"{stopped}; the same command with --out {out} --resume continues"))
    print_run(config.out, contents)
    print(printable(f"next: python -m export {out} --int8"))
    print(
        printable(
            f"next, for a model about 10 times faster on the device: python -m train.compress {out} "
            "(20 minutes for 500 photos on 2 cores), then export its run"
        )
    )
