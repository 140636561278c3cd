from __future__ import annotations

import numpy as np
import pytest

from runtime.model_file.statistics import MAX_POSITIVES
from train.network.novelty import fit_novelty
from train.network.statistics import MIN_VAL_POSITIVES, build_statistics, choose_positives

D = 12


def test_examples_are_spread_evenly_over_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [300, 40, 10])
    rows = choose_positives(labels)
    assert len(set(rows.tolist())) == MAX_POSITIVES and (np.diff(rows) > 0).all()
    assert np.bincount(labels[rows]).tolist() == [50, 40, 10]
    assert choose_positives(labels[:40]).tolist() == list(range(40))


def test_chance_decides_which_of_many_classes_have_examples() -> None:
    labels = np.repeat(np.arange(300), 2)
    chosen = labels[choose_positives(labels)]
    assert len(set(chosen.tolist())) == MAX_POSITIVES
    assert 100 < chosen.mean() < 200  # not the first classes in the alphabet


def test_a_class_without_photos_has_no_examples() -> None:
    labels = np.array([0, 2, 2, 0])
    assert choose_positives(labels).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "from_val"), [(MIN_VAL_POSITIVES - 1, False), (MIN_VAL_POSITIVES, True)])
def test_examples_come_from_val_if_it_has_enough_photos(count: int, from_val: bool) -> None:
    rng = np.random.default_rng(0)
    labels, val_labels = np.arange(90) % 3, np.arange(count) % 3
    train, val = (1 + 0.3 * rng.random((len(y), D)) + 0.5 * np.eye(3, D)[y] for y in (labels, val_labels))
    detector = fit_novelty(train, labels, val, last_width=D)
    statistics = build_statistics(train, labels, val, val_labels, detector)
    expected = val if from_val else train
    np.testing.assert_allclose(statistics.positive_features, expected, atol=5e-3)
    np.testing.assert_allclose(statistics.positive_known, detector(expected), atol=1e-6)
    np.testing.assert_allclose(statistics.means[1], train[labels == 1].mean(0), atol=2e-3)
