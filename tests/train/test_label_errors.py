from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.pooled_features import pooled_features
from train.data.dataset import Photo
from train.label_errors import MIN_JUDGED_PHOTOS, judged_labels, suspect_labels, write_suspects

CLASSES = ("a", "b", "c")
WRONG = (4, 50, 111, 200, 243)


def photos_of(labels: NDArray[Any]) -> list[Photo]:
    return [Photo(f"{number}.jpg", CLASSES[label], "train", "") for number, label in enumerate(labels)]


@pytest.fixture(scope="module")
def planted() -> tuple[list[Photo], NDArray[Any]]:
    """300 photos, of which those in WRONG have the next class as their label."""
    features, labels = pooled_features(300, 1.2)
    labels = labels.copy()
    labels[[*WRONG]] = (labels[[*WRONG]] + 1) % 3
    return photos_of(labels), features


def test_wrong_labels_come_first_with_the_right_class(planted: tuple[list[Photo], NDArray[Any]]) -> None:
    suspects = suspect_labels(*planted, CLASSES)
    first = suspects[: len(WRONG)]
    assert {of.photo.path for of in first} == {f"{number}.jpg" for number in WRONG}
    assert sum(of.confident for of in first) >= 3
    for of in first:
        assert CLASSES.index(of.other) == int(of.photo.path.removesuffix(".jpg")) % 3
    assert all(of.own_probability < of.other_probability for of in suspects)
    assert len(suspects) < 12


def test_hard_photos_with_right_labels_are_rarely_suspect() -> None:
    features, labels = pooled_features(300, 0.4)
    suspects = suspect_labels(photos_of(labels), features, CLASSES)
    confident = [of.confident for of in suspects]
    assert 20 < len(suspects) < 100 and 0 < sum(confident) < len(suspects) / 2
    assert confident == sorted(confident, reverse=True), "the suspect ones come first"


def test_classes_with_few_photos_are_not_judged() -> None:
    features, labels = pooled_features(60, 0.0)
    assert suspect_labels(photos_of(labels)[:10], features[:10], CLASSES) == []
    few = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[: MIN_JUDGED_PHOTOS - 1]])
    suspects = suspect_labels(photos_of(labels[few]), features[few], CLASSES)
    assert suspects and not {"c"} & {name for of in suspects for name in (of.photo.label, of.other)}


@pytest.mark.parametrize(
    ("counts", "judged"),
    [
        ((MIN_JUDGED_PHOTOS, MIN_JUDGED_PHOTOS), {"a", "b"}),
        ((MIN_JUDGED_PHOTOS, MIN_JUDGED_PHOTOS, MIN_JUDGED_PHOTOS - 1), {"a", "b"}),
        ((MIN_JUDGED_PHOTOS, MIN_JUDGED_PHOTOS - 1), set()),  # too few photos in total
    ],
)
def test_labels_with_enough_photos_are_judged(counts: tuple[int, ...], judged: set[str]) -> None:
    assert judged_labels(photos_of(np.repeat(np.arange(len(counts)), counts))) == judged


def test_a_class_with_few_photos_makes_no_photo_of_another_class_suspect() -> None:
    features, labels = pooled_features(300, 0.4)
    few = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[: MIN_JUDGED_PHOTOS - 1]])
    suspects = suspect_labels(photos_of(labels[few]), features[few], CLASSES)
    assert 0 < sum(of.confident for of in suspects) < len(suspects) / 2


def test_the_table_has_the_order_of_the_list(
    planted: tuple[list[Photo], NDArray[Any]], tmp_path: Path
) -> None:
    suspects = suspect_labels(*planted, CLASSES)
    write_suspects(suspects, tmp_path)
    with (tmp_path / "suspect_labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [of.photo.path for of in suspects]
    assert rows[0]["suspect"] == "1" and rows[0]["other"] == suspects[0].other
    assert float(rows[0]["other_probability"]) == pytest.approx(suspects[0].other_probability, abs=1e-4)
