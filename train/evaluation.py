"""Make a trained head honest, and measure what it says: calibrated probabilities, `known`, figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from train.metrics import SplitMetrics, compute_metrics
from train.network.calibration import apply_temperature, expected_calibration_error, temperature
from train.network.novelty import THRESHOLD, NoveltyModel, fit_novelty, unknown_rate
from train.train_head import TrainedHead, predict_in_batches
from train.trainer import FeatureArray

Split = tuple[FeatureArray, NDArray[Any]]


@dataclass(frozen=True)
class Evaluation:
    """By split, val and test: `answers` are probabilities [N, C]; `metrics` all figures, and `summaries` the
    few of run.json, None of a split without photos. `known` is None where it was not learnt.
    """

    probabilities: Mapping[str, NDArray[Any]]
    metrics: dict[str, SplitMetrics | None]
    summaries: Mapping[str, Mapping[str, Any] | None]
    temperature: float
    novelty_model: NoveltyModel | None
    thresholds: Mapping[str, float]


def calibrate_and_evaluate(
    fitted: TrainedHead, train: Split, val: Split, test: Split, classes: tuple[str, ...], learn_known: bool
) -> Evaluation:
    """Calibrate the head on `val`, in its weights, fit `known` where asked for and possible, and measure.

    The three are features and class indices [N]. A head without pooled features has nothing to know by.
    """
    labels = {"val": val[1], "test": test[1]}
    reduced = {
        split: predict_in_batches(fitted.reducer, of[0]) for split, of in (("val", val), ("test", test))
    }
    said = {split: predict_in_batches(fitted.classifier, reduced[split]) for split in reduced}
    divisor = temperature(said["val"], labels["val"])
    apply_temperature(fitted.head, divisor)
    answers = {split: predict_in_batches(fitted.classifier, reduced[split]) for split in reduced}
    metrics = {split: compute_metrics(answers[split], labels[split], classes) for split in answers}
    known, thresholds = None, {}
    if learn_known and fitted.head[0].name == "pool":
        known = fit_novelty(predict_in_batches(fitted.reducer, train[0]), train[1], reduced["val"])
        thresholds = {"known": THRESHOLD}

    def summary(split: str, of: SplitMetrics) -> dict[str, Any]:
        return {
            "n": of["n"],
            "top1": of["top1"],
            "loss": of["loss"],
            "ece": of["ece"],
            "ece_before": expected_calibration_error(said[split], labels[split]),
            **({"unknown": unknown_rate(known(reduced[split]), thresholds)} if known else {}),
        }

    summaries = {split: summary(split, of) if of else None for split, of in metrics.items()}
    return Evaluation(answers, metrics, summaries, divisor, known, thresholds)
