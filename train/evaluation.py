"""Calibrate a trained head, fit the detector of unknown pictures, and measure val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.model_file.statistics import ModelStatistics
from train.data.dataset import SPLITS
from train.metrics import (
    NegativeMetrics,
    PictureOutputs,
    SplitMetrics,
    compute_metrics,
    compute_negative_metrics,
)
from train.network.calibration import apply_temperature, expected_calibration_error, temperature
from train.network.descriptor import channel_means, describe
from train.network.novelty import THRESHOLD, NoveltyModel, fit_novelty, unknown_rate
from train.network.statistics import build_statistics
from train.network.vgg import POOLS
from train.train_head import TrainedHead, predict_in_batches, predict_outputs
from train.trainer import FeatureArray


@dataclass(frozen=True)
class SplitFeatures:
    """The pictures of a split: features [N, …], class indices [N], and the channel means [N, W] of each
    pooling layer up to the features.
    """

    features: FeatureArray
    labels: NDArray[Any]
    means: Sequence[NDArray[Any]]


Splits = Mapping[str, SplitFeatures]  # train, val and test


@dataclass(frozen=True)
class Evaluation:
    """The results of a trained head, by split, for val and test.

    `probabilities` are [N, C]. `metrics` go to metrics.json and `summaries` to run.json; both are None for a
    split without photos. `novelty_model` and `statistics` are None if no detector was fitted.
    """

    probabilities: Mapping[str, NDArray[Any]]
    metrics: dict[str, SplitMetrics | None]
    summaries: Mapping[str, Mapping[str, Any] | None]
    temperature: float
    novelty_model: NoveltyModel | None
    thresholds: Mapping[str, float]
    negatives: Mapping[str, PictureOutputs]
    statistics: ModelStatistics | None
    added: PictureOutputs | None = None  # for the photos of --add


@dataclass(frozen=True)
class _Reduced:
    """The inputs of head and detector: the output of the head's first layer, and descriptors [N, D]."""

    inputs: NDArray[np.float32]
    descriptors: NDArray[np.float32]


def calibrate_and_evaluate(
    trained: TrainedHead,
    photos: Splits,
    negatives: Splits,
    classes: tuple[str, ...],
    known: bool,
    added: SplitFeatures | None = None,
    defaults: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Evaluation:
    """Choose the temperature on the photos of val, apply it to the head's weights, and measure val and test.

    With `known`, a detector of unknown pictures is fitted on photos and negatives; only a head with pooled
    features can have one. `added` are photos of train whose answers are wanted too. `defaults`, a mask [N] by
    split, marks the negatives of the default set: they are measured apart from the user's.
    """
    has_detector = known and trained.head[0].name == "pool"
    measured = [split for split in SPLITS if split != "train"]
    reduced = {
        split: _reduce(trained, photos[split]) for split in SPLITS if has_detector or split in measured
    }
    reduced_negatives = {split: _reduce(trained, negatives[split]) for split in reduced}
    labels = {split: photos[split].labels for split in measured}
    uncalibrated = {split: _probabilities(trained, reduced[split]) for split in measured}
    divisor = temperature(uncalibrated["val"], labels["val"])
    apply_temperature(trained.head, divisor)
    probabilities = {split: _probabilities(trained, reduced[split]) for split in measured}
    detector, statistics = None, None
    if has_detector:
        train, val = reduced["train"].descriptors, reduced["val"].descriptors
        train_labels = photos["train"].labels
        detector = fit_novelty(
            train,
            train_labels,
            val,
            reduced_negatives["train"].descriptors,
            last_width=reduced["train"].inputs.shape[1],
        )
        statistics = build_statistics(train, train_labels, val, labels["val"], detector)
    thresholds = {"known": THRESHOLD} if detector else {}
    results = {split: _outputs(trained, detector, reduced_negatives[split]) for split in measured}
    metrics: dict[str, SplitMetrics | None] = {}
    summaries: dict[str, Mapping[str, Any] | None] = {}
    for split in measured:
        metrics[split] = measured_split = compute_metrics(probabilities[split], labels[split], classes)
        summaries[split] = None
        if measured_split:
            rows = (defaults or {}).get(split)
            measured_split["negatives"], measured_split["default_negatives"] = _negative_metrics(
                results[split], thresholds, classes, rows
            )
            before = expected_calibration_error(uncalibrated[split], labels[split])
            scores = detector(reduced[split].descriptors) if detector else None
            are_drawings = rows is not None and bool(rows.all())
            summaries[split] = _summary(measured_split, before, scores, thresholds, are_drawings)
    answers = _outputs(trained, detector, _reduce(trained, added)) if added else None
    return Evaluation(
        probabilities, metrics, summaries, divisor, detector, thresholds, results, statistics, answers
    )


def _reduce(trained: TrainedHead, split: SplitFeatures) -> _Reduced:
    x = features = keras.Input(split.features.shape[1:])
    means = []
    for layer in trained.blocks:
        x = layer(x)
        if layer.name in POOLS:
            means.append(channel_means(x))
    inputs, *upper = predict_outputs(keras.Model(features, [trained.head[0](x), *means]), split.features)
    return _Reduced(inputs, describe([*split.means, *upper]))


def _probabilities(trained: TrainedHead, reduced: _Reduced) -> NDArray[np.float32]:
    return predict_in_batches(trained.classifier, reduced.inputs)


def _outputs(trained: TrainedHead, detector: NoveltyModel | None, pictures: _Reduced) -> PictureOutputs:
    known = detector(pictures.descriptors) if detector else None
    return PictureOutputs(_probabilities(trained, pictures), known)


def _negative_metrics(
    results: PictureOutputs,
    thresholds: Mapping[str, float],
    classes: tuple[str, ...],
    defaults: NDArray[np.bool_] | None,
) -> tuple[NegativeMetrics | None, NegativeMetrics | None]:
    """The fields `negatives` and `default_negatives` of a split's metrics; both None without a detector.

    The mask `defaults` [N] marks the negatives of the default set.
    """
    if results.known is None or not len(results.known):
        return None, None
    named, others = results.known >= thresholds["known"], None
    main = np.ones(len(named), bool)
    if defaults is not None and defaults.any() and not defaults.all():
        main = ~defaults
        others = compute_negative_metrics(results.probabilities[defaults], named[defaults], classes)
    negatives = compute_negative_metrics(results.probabilities[main], named[main], classes)
    return negatives, others


def _summary(
    metrics: SplitMetrics,
    ece_before: float,
    known: NDArray[Any] | None,
    thresholds: Mapping[str, float],
    are_drawings: bool,
) -> dict[str, Any]:
    """The figures of a split in run.json. `are_drawings`: the user gave no negatives."""
    summary: dict[str, Any] = {
        "n": metrics["n"],
        "top1": metrics["top1"],
        "loss": metrics["loss"],
        "ece": metrics["ece"],
        "ece_before": ece_before,
    }
    if known is not None:
        summary["unknown"] = unknown_rate(known, thresholds)
    if negatives := metrics["negatives"]:
        prefix = "default_" if are_drawings else ""
        summary |= {f"{prefix}named": negatives["named"], f"{prefix}negatives": negatives["n"]}
    if defaults := metrics["default_negatives"]:
        summary |= {"default_named": defaults["named"], "default_negatives": defaults["n"]}
    return summary
