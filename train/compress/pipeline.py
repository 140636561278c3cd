"""Compression, from a trained run to a smaller run, as a list of stages.

The compressed network has fewer channels and maybe a smaller input, so every engine runs it faster. Measured
sensitivities decide where channels are removed; least squares reconstruct each layer's output from the
remaining channels; then the network learns from the outputs of the run's network, the teacher.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.cli import EXIT_INTERRUPTED
from runtime.common.errors import UserError
from runtime.common.text import printable
from train.cache import features_folder
from train.compress.allocation import LAST, NetworkShape
from train.compress.config import CompressConfig, CompressSettings
from train.compress.distillation import DistillationConfig, Start, distill
from train.compress.estimate import Workload, estimate_seconds
from train.compress.features import predict_channel_means
from train.compress.inputs import Inputs
from train.compress.latency_table import estimate_note
from train.compress.latency_target import largest_shape_within, latency_worker
from train.compress.photos import read_photos
from train.compress.pruning import prune_last, pruning_targets, reconstruct
from train.compress.sensitivity import measure_costs
from train.compress.size_target import check_size, choose_shape_within, int8_bytes
from train.compress.stage_cache import StageCache, cache_inputs
from train.compress.teacher import Teacher, candidate_sizes, frozen_weights, load_teacher
from train.compress.teacher_cache import TeacherOutputs, collect_teacher_outputs, upper_teacher
from train.data.augment import negative_view_count, view_count
from train.data.dataset import SPLITS, PhotosError
from train.data.negatives import default_rows
from train.evaluation import Evaluation, SplitFeatures, calibrate_and_evaluate
from train.features.devices import find_devices
from train.features.extraction import Features, extract, plan_extraction
from train.finetune import compute_dtype, view_schedule
from train.logs import TrainingLogger
from train.network.heads import build_classifier
from train.network.vgg import CONVOLUTIONS, POOLS, Weights
from train.progress import Progress
from train.run import Run
from train.run_writer import RunContents, keeps_existing_run, package_versions, print_run, write_run
from train.settings import RECIPES, Settings
from train.train_head import TrainedHead, train_head
from train.trainer import Stage, with_negatives

# TensorFlow warns about models that are built more than once, which every stage here does.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

Outputs = Mapping[str, TeacherOutputs]  # by split


@dataclass(frozen=True)
class Student:
    """The compressed network: its convolutions, its head, and a row for each epoch with its stage."""

    weights: Weights
    head: TrainedHead
    settings: Settings  # of the head
    start: Start  # of distillation
    history: tuple[Mapping[str, object], ...]
    interrupted: bool


def compress(config: CompressConfig, inputs: Inputs) -> int:
    """Compress the run of `inputs` and write the result. Returns the exit code: 0, or 130 after Ctrl-C.

    Raises UserError when the settings cannot be met or a file cannot be written, PhotosError and PictureError
    for the photos.
    """
    settings = config.settings
    teacher = load_teacher(inputs.run, settings)
    check_limits(inputs.run, teacher, settings)  # before minutes of measurements
    logger = TrainingLogger(config.logs, inputs.out)
    depends_on = cache_inputs(inputs.run, settings, inputs.latency_table)
    cache = StageCache(inputs.out, depends_on, config.resume, config.overwrite)
    reduction_is_given = settings.target_ms is None and settings.max_mb is None
    if reduction_is_given:
        print_estimate(config, inputs.run, teacher, teacher.remaining(settings.reduce))
    shape = cache.shape(lambda: find_shape(inputs, teacher, settings))
    print_shape(shape, teacher.of_macs, len(inputs.run.classes))
    if not reduction_is_given:
        print_estimate(config, inputs.run, teacher, teacher.shape.macs / shape.macs)
    features = extract_features(config, inputs.run, teacher)
    outputs = collect_outputs(features, teacher, shape, cache)
    tensors = cache.tensors(lambda: reconstruct_network(inputs.run, teacher, shape, outputs))
    weights = Weights(tensors, inputs.run.base_sha256, "compressed", (shape.size, shape.size))
    student = train_student_head(inputs.run, weights, outputs, settings, cache, logger)
    if settings.epochs and not student.interrupted:
        student = distill_student(inputs.run, student, outputs, settings, cache, logger)
    if student.interrupted and keeps_existing_run(inputs.out):
        return EXIT_INTERRUPTED
    evaluation = evaluate_student(inputs.run, student, outputs, settings)
    contents = run_contents(inputs, teacher, shape, student, outputs, settings, evaluation)
    logger.log_final(evaluation.summaries)
    write_run(inputs.out, contents, inputs.overwrite)
    if not student.interrupted:
        cache.remove()
    print_result(inputs, student, contents)
    return EXIT_INTERRUPTED if student.interrupted else 0


def print_estimate(config: CompressConfig, run: Run, teacher: Teacher, reduction: float) -> None:
    """Print the number of photos, views and epochs, and the estimated minutes of all stages.

    `reduction`: the multiplications of the teacher over those of the compressed network.
    """
    settings, dataset = config.settings, run.dataset
    plan = plan_extraction(
        dataset,
        frozen_weights(run, teacher),
        features_folder(config.cache),
        views=settings.views,
        layer=teacher.last_frozen,
        devices=find_devices(),
    )
    work = Workload(
        len(dataset.split("train")),
        len(dataset.negatives_of("train")) * negative_view_count("train", settings.views),
        len(plan.files),
        plan.pictures,
        POOLS.index(teacher.last_frozen) + 2,
        len(teacher.sample),
        settings.epochs,
        reduction,
    )
    seconds = estimate_seconds(teacher.model, teacher.shape, work)
    print(
        f"compress: {len(dataset.photos):,} photos, {settings.views} views, {settings.epochs} epochs: "
        f"about {max(1, round(seconds / 60))} min in all on this machine",
        flush=True,
    )


def check_limits(run: Run, teacher: Teacher, settings: CompressSettings) -> None:
    """Raises UserError if no network, or the whole network of the run, is within --max-mb."""
    classes = len(run.classes)
    check_size(settings.max_mb, teacher.shape, classes)
    if settings.max_mb is None or settings.target_ms is not None or teacher.remaining(settings.reduce) > 1:
        return
    if (size := int8_bytes(teacher.shape, classes)) <= 1e6 * settings.max_mb:
        raise UserError(
            f"--max-mb {settings.max_mb:g}: the int8 file of run {run.path} already has about "
            f"{size / 1e6:.1f} MB; give a lower limit, or --reduce"
        )


def find_shape(inputs: Inputs, teacher: Teacher, settings: CompressSettings) -> NetworkShape:
    """Measure how much fewer channels and pixels change the features, and choose the shape for --reduce,
    --target-ms and --max-mb.
    """
    run, table = inputs.run, inputs.latency_table
    sizes = candidate_sizes(teacher.shape, settings)
    costs = measure_costs(run.dataset, teacher.tensors, teacher.shape, teacher.sample, sizes)
    classes = len(run.classes)

    def choose(reduction: float) -> NetworkShape:
        remaining = teacher.remaining(reduction)
        return choose_shape_within(settings.max_mb, costs, teacher.shape, remaining, classes)

    if settings.target_ms is None:
        for size, change in costs.sizes.items():
            print(f"input: {size}x{size} pixels change the features by {change:.3f} (0: equal, 2: unrelated)")
        return choose(settings.reduce)
    if settings.board:
        print(estimate_note(settings.board), flush=True)
    if table:
        return largest_shape_within(
            settings, choose, lambda shape: table.estimate(shape.macs), above=teacher.reduction
        )
    with latency_worker(classes, settings.engine) as measure:
        return largest_shape_within(settings, choose, measure, above=teacher.reduction)


def print_shape(shape: NetworkShape, of_macs: int, classes: int) -> None:
    """Print the chosen size, GMACs, int8 bytes and channels."""
    print(
        f"network: {shape.size}x{shape.size} pixels, {shape.macs / 1e9:.2f} GMAC per photo, "
        f"{of_macs / shape.macs:.1f} times fewer, int8 file of about "
        f"{int8_bytes(shape, classes) / 1e6:.2f} MB; channels {' '.join(map(str, shape.widths.values()))}",
        flush=True,
    )


def extract_features(config: CompressConfig, run: Run, teacher: Teacher) -> Features:
    """The output of the frozen layers for all photos and negatives; training has stored most of it.

    Raises PhotosError when a photo cannot be read.
    """
    features = extract(
        run.dataset,
        frozen_weights(run, teacher),
        features_folder(config.cache),
        views=config.settings.views,
        layer=teacher.last_frozen,
        limit=config.cache_limit,
    )
    for item in set(features.dataset.left_out) - set(run.dataset.left_out):
        raise PhotosError(f"{item.path}: {item.reason}; restore the photos, or train again")
    return features


def collect_outputs(features: Features, teacher: Teacher, shape: NetworkShape, cache: StageCache) -> Outputs:
    """The teacher's outputs for all photos and negatives, by split."""
    upper = upper_teacher(teacher.model, teacher.last_frozen)
    total = sum(len(features.photos_and_negatives(split)[0]) for split in SPLITS)
    with Progress("teacher outputs", total, "pictures") as progress:
        return {
            split: collect_teacher_outputs(features, split, shape.size, upper, cache.folder, progress.step)
            for split in SPLITS
        }


def reconstruct_network(
    run: Run, teacher: Teacher, shape: NetworkShape, outputs: Outputs
) -> Mapping[str, NDArray[np.float32]]:
    """Solve every convolution on the sample, then choose the last convolution's channels on all photos."""
    pictures = read_photos(run.dataset, teacher.sample, shape.size)
    with Progress("reconstruct", len(CONVOLUTIONS), "layers") as progress:
        solved = reconstruct(teacher.tensors, pictures, shape.widths, progress.step)
    worst = min(solved.explained, key=lambda name: solved.explained[name])
    print(f"reconstructed: at least {solved.explained[worst]:.1%} of each layer's variance (least: {worst})")
    train = outputs["train"]
    unpruned = Weights(solved.tensors, "", "")
    rows = photo_rows(run, "train")
    pooled = predict_channel_means(unpruned, train.pictures, rows, "all channels")[-1]
    targets = pruning_targets(train.features[rows], train.probabilities[rows])
    return prune_last(solved.tensors, pooled, targets, shape.widths[LAST])


def train_student_head(
    run: Run,
    weights: Weights,
    outputs: Outputs,
    settings: CompressSettings,
    cache: StageCache,
    logger: TrainingLogger,
) -> Student:
    """Train a pooled head on the reconstructed network."""
    head_settings = pooled_head_settings(run, settings)
    photos = photo_rows(run, "train", min(head_settings.views, settings.views))
    rows = np.concatenate([photos, negative_rows(outputs["train"])])
    train = student_features(weights, outputs["train"], rows, "train")
    val = student_features(weights, outputs["val"], photo_rows(run, "val"), "val")
    head = train_head(
        (train.features, train.labels),
        (val.features, val.labels),
        len(run.classes),
        head_settings,
        checkpoint_dir=cache.folder,
        on_epoch=logger.log_epoch,
    )
    history = tuple({"stage": "head", **epoch} for epoch in head.history)
    return Student(weights, head, head_settings, Start(train.means, rows), history, head.interrupted)


def distill_student(
    run: Run,
    student: Student,
    outputs: Outputs,
    settings: CompressSettings,
    cache: StageCache,
    logger: TrainingLogger,
) -> Student:
    """Train the whole network to give the teacher's outputs."""
    train, val = outputs["train"], outputs["val"].without_negatives()
    photo_order = view_schedule(
        len(run.dataset.split("train")), replace(student.settings, fine_tune_views=settings.views)
    )
    order = with_negatives(photo_order, train.photos, len(train.labels) - train.photos, student.settings.seed)
    config = DistillationConfig(
        settings.batch, settings.learning_rate, student.settings.weight_decay, settings.seed, order
    )
    stage = Stage("distill", settings.epochs, cache.folder, cache.fingerprint, logger.log_epoch)
    weights, trained = distill(student.head, student.weights, student.start, train, val, config, stage)
    history = tuple({"stage": "distill", **epoch} for epoch in trained.epochs)
    return replace(
        student, weights=weights, history=(*student.history, *history), interrupted=trained.interrupted
    )


def evaluate_student(run: Run, student: Student, outputs: Outputs, settings: CompressSettings) -> Evaluation:
    """Calibrate the head on val, fit the detector of unknown pictures, and measure val and test."""
    views = min(student.settings.views, settings.views)
    photos, negatives = (
        {
            split: student_features(student.weights, outputs[split], rows[split], f"{split}{suffix}")
            for split in SPLITS
        }
        for suffix, rows in (
            ("", {split: photo_rows(run, split, views) for split in SPLITS}),
            (" negatives", {split: negative_rows(outputs[split]) for split in SPLITS}),
        )
    )
    rows = added_rows(run, outputs["train"])
    added = student_features(student.weights, outputs["train"], rows, "added") if len(rows) else None
    defaults = default_rows(run.dataset)
    known = student.settings.known
    return calibrate_and_evaluate(student.head, photos, negatives, run.classes, known, added, defaults)


def run_contents(
    inputs: Inputs,
    teacher: Teacher,
    shape: NetworkShape,
    student: Student,
    outputs: Outputs,
    settings: CompressSettings,
    evaluation: Evaluation,
) -> RunContents:
    """Everything that the run folder holds."""
    run = inputs.run
    predicted = teacher.uncompressed
    if predicted is None:
        measured = {split: outputs[split].without_negatives() for split in ("val", "test")}
        predicted = {split: output.probabilities.argmax(1) for split, output in measured.items()}
    top1 = {
        split: float((indices == outputs[split].without_negatives().labels).mean()) if len(indices) else None
        for split, indices in predicted.items()
    }
    record: dict[str, Any] = {
        "name": inputs.out.name,
        "created": inputs.started.isoformat(timespec="seconds"),
        "recipe": student.settings.recipe,
        "settings": asdict(student.settings) | {"weights": run.settings.get("weights")},
        "base_sha256": run.base_sha256,
        "picture_version": run.picture_version,
        "versions": package_versions(),
        "device": f"{', '.join(find_devices().names)}, {compute_dtype()}, on {keras.backend.backend()}",
        "fine_tuning_discarded": run.fine_tuning_discarded,
        "temperature": evaluation.temperature,
        "thresholds": evaluation.thresholds,
        "metrics": evaluation.summaries,
        "compressed": {
            "from": run.compressed.get("from", run.name),
            "through": run.name if run.compressed else "",  # the run of the step before
            **asdict(settings),
            "size": shape.size,
            "widths": shape.widths,
            "macs": shape.macs,
            "of_macs": teacher.of_macs,
            "of_size": run.compressed.get("of_size", teacher.shape.size),
            "uncompressed_top1": top1,
        },
    }
    model = build_classifier(student.weights, student.head.head, evaluation.novelty_model)
    return RunContents(record, run.dataset, model, student.history, evaluation, uncompressed=predicted)


def print_result(inputs: Inputs, student: Student, contents: RunContents) -> None:
    """Print the metrics beside the top-1 of the uncompressed network, and the next command."""
    out = shlex.quote(str(inputs.out))
    if student.interrupted:
        print(printable(f"stopped early: {out} has the best network so far; --resume continues"))
    print_run(inputs.out, contents)
    for split, top1 in contents.record["compressed"]["uncompressed_top1"].items():
        if top1 is not None:
            print(f"{split}: the uncompressed network has top-1 {top1:.1%}")
    if board := contents.record["compressed"]["board"]:
        print(estimate_note(board))
    print(printable(f"next: python -m export {out} --int8"))


def student_features(
    weights: Weights, outputs: TeacherOutputs, rows: NDArray[np.intp], name: str
) -> SplitFeatures:
    """The network's pooled features [n, 1, 1, W], class indices and channel means of these rows."""
    means = predict_channel_means(weights, outputs.pictures, rows, name)
    return SplitFeatures(means[-1][:, np.newaxis, np.newaxis, :], outputs.labels[rows], means)


def photo_rows(run: Run, split: str, views: int = 1) -> NDArray[np.intp]:
    """The rows of a split's photos in the teacher's outputs: in train, of their first `views` views."""
    return np.arange(len(run.dataset.split(split)) * view_count(split, views))


def negative_rows(outputs: TeacherOutputs) -> NDArray[np.intp]:
    """The rows of the negatives in the teacher's outputs, which follow the photos."""
    return np.arange(outputs.photos, len(outputs.labels))


def added_rows(run: Run, outputs: TeacherOutputs) -> NDArray[np.intp]:
    """The rows of the photos of --add in the teacher's outputs for train, in the order of `dataset.added`."""
    dataset = run.dataset
    photos, negatives = (
        [row for row, photo in enumerate(split) if dataset.is_added(photo)]
        for split in (dataset.split("train"), dataset.negatives_of("train"))
    )
    return np.array([*photos, *(outputs.photos + row for row in negatives)], np.intp)


def pooled_head_settings(run: Run, settings: CompressSettings) -> Settings:
    """The run's settings; for another recipe than "pooled", those of "pooled": its head fits any input."""
    names = {field.name for field in fields(Settings)}
    own = Settings(**{name: value for name, value in run.settings.items() if name in names})
    if own.recipe != "pooled":
        own = replace(RECIPES["pooled"], split_seed=own.split_seed, limit=own.limit)
    return replace(own, seed=settings.seed)
