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


def trained(train: Split, method: str, epochs: int = 12) -> TrainedHead:
    return train_head(
        train, split([10, 10, 10], 9), 3, Settings(epochs=epochs, batch=16, class_weight=method)
    )


def recall(fitted: TrainedHead, label: int) -> float:
    features, labels = split([200, 200, 200], 5)
    predicted = predict_in_batches(fitted.classifier, predict_in_batches(fitted.reducer, features)).argmax(1)
    return float((predicted[labels == label] == label).mean())


def test_balanced_weights_equal_scikit_learns() -> None:
    labels = np.repeat(np.arange(4), [50, 200, 100, 30])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert class_weights(labels, 4, "balanced") == pytest.approx(dict(enumerate(expected)))
    assert class_weights(labels, 4, "none") is None


@pytest.mark.parametrize("counts", [[50, 50, 50], [50, 60, 75]])
def test_even_classes_have_no_weights(counts: list[int]) -> None:
    assert class_weights(np.repeat(np.arange(3), counts), 3, "balanced") is None


def test_even_classes_train_the_same_with_both_methods() -> None:
    even = split([40, 40, 40], 0)
    assert trained(even, "balanced", 2).history == trained(even, "none", 2).history


def test_weights_raise_the_recall_of_a_small_class() -> None:
    uneven = split([90, 90, 6], 0)
    assert recall(trained(uneven, "balanced"), 2) > recall(trained(uneven, "none"), 2) + 0.1


@pytest.mark.parametrize(("small", "is_printed"), [(15, False), (9, True)])
def test_uneven_classes_are_printed(
    small: int, is_printed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["a"] * 20 + ["b"] * small
    photos = tuple(Photo(f"{at}.jpg", label, "train", str(at)) for at, label in enumerate(labels))
    unlike = replace(photos[0], label="b", split="val")  # val is not counted
    print_class_balance(Dataset(tmp_path, ("a", "b"), (*photos, *[unlike] * 99)), "balanced")
    printed = capsys.readouterr().out
    facts = ("a 20, b 9", "--class-weight balanced")
    assert all(fact in printed for fact in facts) if is_printed else not printed


@pytest.mark.parametrize(("tested", "is_printed"), [("ab", False), ("a", True), ("", False)])
def test_classes_without_test_photos_are_printed(
    tested: str, is_printed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [("a", "train"), ("b", "train"), *((label, "test") for label in tested)]
    photos = tuple(Photo(f"{at}.jpg", *place, str(at)) for at, place in enumerate(places))
    print_class_balance(Dataset(tmp_path, ("a", "b"), photos), "balanced")
    assert ("warning: no test photo of b," in capsys.readouterr().out) == is_printed
