from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from train.data.class_weights import class_weights, print_class_balance
from train.data.dataset import Dataset, Photo
from train.settings import Settings
from train.train_head import TrainedHead, predict_in_batches, train_head

Split = tuple[NDArray[Any], NDArray[Any]]


def split(counts: list[int], seed: int) -> Split:
    """Pooled features of classes that overlap, as [N, 1, 1, 8]."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    x = rng.normal(1.0, 0.5, (len(labels), 8))
    x[np.arange(len(labels)), labels] += 0.5
    return x[:, None, None].astype(np.float16), labels


def trained(train: Split, how: str) -> TrainedHead:
    return train_head(train, split([10, 10, 10], 9), 3, Settings(epochs=12, batch=16, class_weight=how))


def recall(fitted: TrainedHead, label: int) -> float:
    features, labels = split([200, 200, 200], 5)
    said = predict_in_batches(fitted.classifier, predict_in_batches(fitted.reducer, features)).argmax(1)
    return float((said[labels == label] == label).mean())


def test_weights_are_the_fields_own() -> None:
    labels = np.repeat(np.arange(4), [50, 200, 100, 30])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert class_weights(labels, 4, "balanced") == pytest.approx(dict(enumerate(expected)))
    assert class_weights(labels, 4, "none") is None


@pytest.mark.parametrize("counts", [[50, 50, 50], [50, 60, 75]])
def test_even_classes_have_none(counts: list[int]) -> None:
    assert class_weights(np.repeat(np.arange(3), counts), 3, "balanced") is None


def test_on_even_classes_both_train_the_same() -> None:
    even = split([40, 40, 40], 0)
    assert trained(even, "balanced").history == trained(even, "none").history


def test_a_small_class_is_found_more_often_when_weighted() -> None:
    uneven = split([90, 90, 6], 0)
    assert recall(trained(uneven, "balanced"), 2) > recall(trained(uneven, "none"), 2) + 0.1


@pytest.mark.parametrize(("small", "told"), [(15, False), (9, True)])
def test_uneven_classes_are_told(
    small: int, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["a"] * 20 + ["b"] * small
    photos = tuple(Photo(f"{at}.jpg", label, "train", str(at)) for at, label in enumerate(labels))
    unlike = replace(photos[0], label="b", split="val")  # val is not counted
    print_class_balance(Dataset(tmp_path, ("a", "b"), (*photos, *[unlike] * 99)), "balanced")
    line = "uneven classes: a 20, b 9 to train on; --class-weight balanced\n"
    assert capsys.readouterr().out == (line if told else "")
