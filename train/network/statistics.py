"""Build the statistics that a model file carries: runtime/model_file/statistics.py defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model_file.statistics import MAX_POSITIVES, ModelStatistics, fit_statistics
from train.network.novelty import NoveltyModel

# With fewer photos in val, training photos are the examples: 50 photos show a rate of rejected photos to
# about 4 points, and the model gives its own training photos too high a `known`.
MIN_VAL_POSITIVES = 50


def build_statistics(
    train: NDArray[Any],
    labels: NDArray[Any],
    val: NDArray[Any],
    val_labels: NDArray[Any],
    detector: NoveltyModel,
) -> ModelStatistics:
    """The statistics of descriptors [N, D] with class indices [N], with examples of val, or else of train."""
    examples, example_labels = (val, val_labels) if len(val) >= MIN_VAL_POSITIVES else (train, labels)
    rows = choose_positives(example_labels)
    chosen = examples[rows]
    return fit_statistics(train, labels, chosen, example_labels[rows], detector(chosen))


def choose_positives(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Up to MAX_POSITIVES rows, as many of each class as possible, drawn from class indices [N].

    Chance decides which classes have one row more, or any, if there are more classes than rows.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.concatenate([np.arange(size) for size in sizes])  # within its class
    chosen = np.lexsort((rng.random(len(rank)), rank))[:MAX_POSITIVES]
    return np.sort(by_class[chosen])
