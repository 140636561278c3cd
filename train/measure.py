"""Make a trained head honest, and measure what it says: calibrated probabilities, `known`, figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from train.calibrate import calibration_error, cool, temperature
from train.epochs import Array
from train.evaluate import Figures, figures
from train.fit import Fitted, predict
from train.known import THRESHOLD, Known, fit_known, refused

Split = tuple[Array, NDArray[Any]]


@dataclass(frozen=True)
class Measured:
    """By split, val and test: `answers` are probabilities [N, C]; `metrics` all figures, and `summaries` the
    few of run.json, None of a split without photos. `known` is None where it was not learnt.
    """

    answers: Mapping[str, NDArray[Any]]
    metrics: dict[str, Figures | None]
    summaries: Mapping[str, Mapping[str, Any] | None]
    temperature: float
    known: Known | None
    thresholds: Mapping[str, float]


def measure(
    fitted: Fitted, train: Split, val: Split, test: Split, classes: tuple[str, ...], learn_known: bool
) -> Measured:
    """Calibrate the head on `val`, in its weights, fit `known` where asked for and possible, and measure.

    The three are features and class indices [N]. A head without pooled features has nothing to know by.
    """
    labels = {"val": val[1], "test": test[1]}
    reduced = {split: predict(fitted.reduce, of[0]) for split, of in (("val", val), ("test", test))}
    said = {split: predict(fitted.rest, reduced[split]) for split in reduced}
    divisor = temperature(said["val"], labels["val"])
    cool(fitted.head, divisor)
    answers = {split: predict(fitted.rest, reduced[split]) for split in reduced}
    metrics = {split: figures(answers[split], labels[split], classes) for split in answers}
    known, thresholds = None, {}
    if learn_known and fitted.head[0].name == "pool":
        known = fit_known(predict(fitted.reduce, train[0]), train[1], reduced["val"])
        thresholds = {"known": THRESHOLD}

    def summary(split: str, of: Figures) -> dict[str, Any]:
        return {
            "n": of["n"],
            "top1": of["top1"],
            "loss": of["loss"],
            "calibration_error": of["calibration_error"],
            "calibration_error_before": calibration_error(said[split], labels[split]),
            **({"unknown": refused(known(reduced[split]), thresholds)} if known else {}),
        }

    summaries = {split: summary(split, of) if of else None for split, of in metrics.items()}
    return Measured(answers, metrics, summaries, divisor, known, thresholds)
