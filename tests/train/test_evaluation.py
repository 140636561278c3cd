from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.data.class_weights import NEGATIVE
from train.data.dataset import SPLITS
from train.evaluation import SplitFeatures, Splits, calibrate_and_evaluate
from train.network.descriptor import describe
from train.settings import RECIPES
from train.train_head import TrainedHead, train_head

CLASSES = ("a", "b", "c")
WIDTHS = (8, 24)


def split_of(count: int, seed: int, negatives: bool = False) -> SplitFeatures:
    """Photos of three classes, or negatives with other active channels: means of two pooling layers."""
    rng = np.random.default_rng(seed)
    labels = np.full(count, NEGATIVE) if negatives else np.arange(count) % 3
    means = [rng.gamma(4, 0.25, (count, width)).astype(np.float32) for width in WIDTHS]
    for row, label in enumerate(labels):
        means[1][row, 18:] += 2 * negatives
        means[1][row, 6 * label : 6 * label + 6] += 2 * (not negatives)
    return SplitFeatures(means[1][:, np.newaxis, np.newaxis], labels.astype(np.int32), means)


PHOTOS: Splits = {split: split_of(60, seed) for seed, split in enumerate(SPLITS)}
NEGATIVES: Splits = {split: split_of(30, seed, True) for seed, split in enumerate(SPLITS, 3)}
NONE: Splits = {split: split_of(0, 0, True) for split in SPLITS}


@pytest.fixture(scope="module")
def trained() -> TrainedHead:
    train, val = ((PHOTOS[split].features, PHOTOS[split].labels) for split in ("train", "val"))
    return train_head(train, val, 3, replace(RECIPES["pooled"], epochs=5))


def test_negatives_are_measured_by_the_detector(trained: TrainedHead) -> None:
    evaluation = calibrate_and_evaluate(trained, PHOTOS, NEGATIVES, CLASSES, known=True)
    detector = evaluation.novelty_model
    assert detector is not None and evaluation.statistics is not None
    for split in ("val", "test"):
        results, metrics, summary = (
            evaluation.negatives[split],
            evaluation.metrics[split],
            evaluation.summaries[split],
        )
        assert results.known is not None and metrics is not None and summary is not None
        np.testing.assert_allclose(results.known, detector(describe(NEGATIVES[split].means)), atol=1e-5)
        named = results.known >= evaluation.thresholds["known"]
        assert metrics["negatives"] == {
            "n": 30,
            "named": pytest.approx(named.mean()),
            "per_class": {
                name: int((named & (results.probabilities.argmax(1) == index)).sum())
                for index, name in enumerate(CLASSES)
            },
        }
        assert summary["named"] == metrics["negatives"]["named"] < 0.2 and summary["negatives"] == 30
        assert summary["unknown"] < 0.2
    assert set(evaluation.statistics.positive_labels.tolist()) == {0, 1, 2}


def test_default_negatives_are_measured_apart(trained: TrainedHead) -> None:
    defaults = {split: np.arange(30) >= 10 for split in ("val", "test")}
    evaluation = calibrate_and_evaluate(trained, PHOTOS, NEGATIVES, CLASSES, known=True, defaults=defaults)
    metrics, summary = evaluation.metrics["test"], evaluation.summaries["test"]
    assert metrics is not None and summary is not None and evaluation.negatives["test"].known is not None
    named = evaluation.negatives["test"].known >= evaluation.thresholds["known"]
    own, default = metrics["negatives"], metrics["default_negatives"]
    assert own is not None and default is not None and (own["n"], default["n"]) == (10, 20)
    assert summary["named"] == own["named"] == pytest.approx(named[:10].mean())
    assert summary["default_named"] == default["named"] == pytest.approx(named[10:].mean())
    for alone in (np.zeros(30, bool), np.ones(30, bool)):
        evaluation = calibrate_and_evaluate(
            trained, PHOTOS, NEGATIVES, CLASSES, known=True, defaults={"test": alone}
        )
        metrics, summary = evaluation.metrics["test"], evaluation.summaries["test"]
        assert metrics is not None and metrics["negatives"] is not None and summary is not None
        assert metrics["negatives"]["n"] == 30 and metrics["default_negatives"] is None
        assert ("default_named" in summary, "named" in summary) == (alone.all(), not alone.any())


def test_the_detector_learns_from_negatives(trained: TrainedHead) -> None:
    scores = []
    for negatives in (NONE, NEGATIVES):
        detector = calibrate_and_evaluate(trained, PHOTOS, negatives, CLASSES, known=True).novelty_model
        assert detector is not None
        scores.append(detector(describe(NEGATIVES["test"].means)).mean())
    assert scores[1] < scores[0]


def test_without_negatives_or_without_a_detector_nothing_is_named(trained: TrainedHead) -> None:
    without = calibrate_and_evaluate(trained, PHOTOS, NONE, CLASSES, known=True)
    disabled = calibrate_and_evaluate(trained, PHOTOS, NEGATIVES, CLASSES, known=False)
    for evaluation in (without, disabled):
        for split in ("val", "test"):
            metrics, summary = evaluation.metrics[split], evaluation.summaries[split]
            assert metrics is not None and metrics["negatives"] is None
            assert summary is not None and "named" not in summary
    assert without.statistics is not None and disabled.statistics is None
    assert disabled.negatives["val"].known is None and disabled.negatives["val"].probabilities.shape == (
        30,
        3,
    )
