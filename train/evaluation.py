"""Calibrate a trained head, fit the novelty detector, and measure val and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from train.metrics import SplitMetrics, compute_metrics
from train.network.calibration import apply_temperature, expected_calibration_error, temperature
from train.network.descriptor import describe
from train.network.novelty import THRESHOLD, NoveltyModel, fit_novelty, unknown_rate
from train.train_head import TrainedHead, predict_in_batches
from train.trainer import Split


@dataclass(frozen=True)
class Evaluation:
    """The results of a trained head, by split, for val and test.

    `probabilities` are [N, C]. `metrics` go to metrics.json and `summaries` to run.json; both are None for a
    split without photos. `novelty_model` is None if it was not fitted.
    """

    probabilities: Mapping[str, NDArray[Any]]
    metrics: dict[str, SplitMetrics | None]
    summaries: Mapping[str, Mapping[str, Any] | None]
    temperature: float
    novelty_model: NoveltyModel | None
    thresholds: Mapping[str, float]


def calibrate_and_evaluate(
    trained: TrainedHead, train: Split, val: Split, test: Split, classes: tuple[str, ...], known: bool
) -> Evaluation:
    """Choose the temperature on `val`, apply it to the head's weights, and measure `val` and `test`.

    The splits are features and class indices [N]. With `known`, a novelty detector is fitted on `train`; only
    a head with pooled features can have one.
    """
    labels = {"val": val[1], "test": test[1]}
    reduced = {
        "val": predict_in_batches(trained.reducer, val[0]),
        "test": predict_in_batches(trained.reducer, test[0]),
    }
    uncalibrated = {split: predict_in_batches(trained.classifier, reduced[split]) for split in reduced}
    divisor = temperature(uncalibrated["val"], labels["val"])
    apply_temperature(trained.head, divisor)
    probabilities = {split: predict_in_batches(trained.classifier, reduced[split]) for split in reduced}
    metrics = {split: compute_metrics(probabilities[split], labels[split], classes) for split in labels}
    novelty_model, thresholds = None, {}
    if known and trained.head[0].name == "pool":
        pooled = predict_in_batches(trained.reducer, train[0])
        novelty_model = fit_novelty(describe([pooled]), train[1], describe([reduced["val"]]))
        thresholds = {"known": THRESHOLD}

    def summary(split: str, measured: SplitMetrics) -> dict[str, Any]:
        return {
            "n": measured["n"],
            "top1": measured["top1"],
            "loss": measured["loss"],
            "ece": measured["ece"],
            "ece_before": expected_calibration_error(uncalibrated[split], labels[split]),
            **(
                {"unknown": unknown_rate(novelty_model(describe([reduced[split]])), thresholds)}
                if novelty_model
                else {}
            ),
        }

    summaries = {split: summary(split, measured) if measured else None for split, measured in metrics.items()}
    return Evaluation(probabilities, metrics, summaries, divisor, novelty_model, thresholds)
