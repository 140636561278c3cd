"""Fits a learned state to the photos that a device was taught, with NumPy, in well under a second.

The fit is a softmax regression on the features. The logits of the model are fixed terms, so that answers
change as little as the photos need. The examples in the model file are fitted too, so that the model keeps
its classes. docs/decisions.md compares the method with others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.errors import UserError
from runtime.common.text import pluralize
from runtime.inference.correction import bias_to_add, logit, sigmoid
from runtime.inference.fitted_photos import FOLDS, MAX_FITTED, fold_numbers
from runtime.inference.learned_state import (
    SMALLEST_PROBABILITY,
    LabelResult,
    LearnedState,
    Measured,
)
from runtime.inference.softmax_regression import PENALTY, Metric, fit_softmax, softmax
from runtime.preprocess.photo_files import NONE_LABEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.model_file.contract import Contract
    from runtime.model_file.statistics import ModelStatistics

    Array = NDArray[np.float64]
    Integers = NDArray[np.int64]
    # The positions of the classes whose logits change, their weights [D, R] and biases [R].
    Head = tuple[list[int], Array, Array]

# Chosen on validation photos of the flowers, and on pictures of openclipart and tuxpaint as new classes.
SHRINKAGE = 1.0  # of the mean variance, added to each variance
# The mean variance is at least this share of the variance of the means of the classes, because classes with
# one photo each have no variance within a class.
MIN_VARIANCE_SHARE = 0.01
HEAD_SCALE = 0.26  # of the logits of linear discriminant analysis, to resemble the model's probabilities
EXAMPLES_WEIGHT = 100.0  # of all examples together
NEW_CLASS_WEIGHT = 200.0  # of all photos of a new class together
CORRECTED_WEIGHT = 3.0  # of a photo of one of the model's classes
REJECTED_WEIGHT = 100.0  # of all photos of none of the classes together
TAKEN_SHARE = 0.02  # of photos like the examples, by all new classes; over the taught photos, at least 3
MIN_EXAMPLES = 30  # with fewer, TAKEN_DRAWN limits the bias
TAKEN_DRAWN = 0.0001  # of the drawn features, which vary less than photos
MISSED_SHARE = 0.1  # of the photos of a new class may be missed without a change of its bias
KNOWN_SHARE = 0.95  # of the photos of a group are to be known
TYPICAL_SHARE = 0.95  # of the photos of a class or group are within the limit of the distance to its mean
NEARNESS = 0.07  # of the lead in the logit of a new class; linear discriminant analysis would have 0.5
SENSITIVITIES = (2.0, 20.0)  # smallest and largest, per distance as large as that of a typical example
MAX_MORE_REJECTED = 0.01  # of the drawn features
MAX_LOST = 0.015  # of the examples, without a warning
DRAWN = 300  # features of the classes
SEED = 0
FEW_PHOTOS = 5  # of a new class; with fewer, the result is not reliable


@dataclass(frozen=True)
class TaughtOutputs:
    """The model's outputs for the photos that a device was taught, and the ids of the photos."""

    ids: Sequence[str]  # [N], oldest first
    labels: Sequence[str]  # [N], NONE_LABEL for photos of none of the classes
    probabilities: NDArray[Any]  # [N, C]
    known: NDArray[Any] | None  # [N]; None when the model has no such output
    features: NDArray[Any]  # [N, D]


@dataclass(frozen=True)
class LearnedFit:
    """The fitted state, with its measurements, and a line for each reason to give more or other photos."""

    state: LearnedState
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Samples:
    """Outputs of the model for N photos; `truth` is -1 for a photo of none of the classes."""

    features: Array  # [N, D]
    probabilities: Array  # [N, C]
    known: Array | None  # [N]
    truth: Integers  # [N], positions in all labels

    def take(self, chosen: NDArray[Any]) -> _Samples:
        known = None if self.known is None else self.known[chosen]
        return _Samples(self.features[chosen], self.probabilities[chosen], known, self.truth[chosen])

    def join(self, other: _Samples) -> _Samples:
        known = None
        if self.known is not None and other.known is not None:
            known = np.concatenate([self.known, other.known])
        return _Samples(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.probabilities, other.probabilities]),
            known,
            np.concatenate([self.truth, other.truth]),
        )


@dataclass(frozen=True)
class _Knowledge:
    """The start of a fit: the model and the examples in its file."""

    contract: Contract
    labels: tuple[str, ...]  # the classes of the model, then the new ones
    metric: Metric
    means: Array  # [C, D]
    center: Array  # [D]
    examples: _Samples
    drawn: _Samples  # features drawn from the Gaussians of the classes, of which no fit learns
    threshold: float  # of `known`, as a logit
    distances: Array  # [N] of the examples, each from the mean of its class

    @property
    def typical(self) -> float:
        """The distance of a typical photo of a class from its mean."""
        return float(self.distances.mean())


def fit_learned(
    contract: Contract, statistics: ModelStatistics, taught: TaughtOutputs, threshold: float | None = None
) -> LearnedFit:
    """Returns the state that lets the model name the taught photos, with its measurements.

    Labels that are not in the contract become new classes. `threshold` is the one of `known` (default: that
    of the contract). Raises UserError without photos, and with those of over MAX_FITTED labels.
    """
    if not taught.ids:
        raise UserError("no photos to learn from: teach some")
    if len(set(taught.labels)) > MAX_FITTED:  # else a fit would use no photo of any label
        raise UserError(f"photos of over {MAX_FITTED} labels cannot be learned: remove those of some labels")
    new = sorted(set(taught.labels) - {NONE_LABEL, *contract.labels})
    threshold = contract.thresholds.get("known", 0.0) if threshold is None else threshold
    knowledge = _prepare(contract, statistics, (*contract.labels, *new), threshold)
    positions = {label: at for at, label in enumerate(knowledge.labels)} | {NONE_LABEL: -1}
    photos = _Samples(
        np.asarray(taught.features, np.float64),
        np.asarray(taught.probabilities, np.float64),
        None if taught.known is None else np.asarray(taught.known, np.float64),
        np.array([positions[label] for label in taught.labels]),
    )
    folds = fold_numbers(photos.truth, _right(knowledge, None, photos))
    state = _fit(knowledge, knowledge.examples, photos.take(folds >= 0))
    state = replace(
        state,
        photos=dict(zip(taught.ids, taught.labels, strict=True)),
        measured=_measure(knowledge, state, photos, folds),
        threshold=threshold,
    )
    return LearnedFit(state, tuple(_warnings(state)))


def _prepare(
    contract: Contract, statistics: ModelStatistics, labels: tuple[str, ...], threshold: float
) -> _Knowledge:
    factors, means = statistics.factors.astype(np.float64), statistics.means.astype(np.float64)
    within = float(statistics.variances.mean(dtype=np.float64))
    variance = max(within, MIN_VARIANCE_SHARE * float(means.var(0).mean()))
    variances = statistics.residual_variances + SHRINKAGE * variance
    scaled = factors / np.maximum(variances, 1e-9)
    inner = np.linalg.inv(np.eye(len(factors)) + scaled @ factors.T)
    metric = Metric(1 / np.maximum(variances, 1e-9), np.linalg.cholesky(inner).T @ scaled)
    random = np.random.default_rng(SEED)
    drawn, classes = statistics.draw(DRAWN, random)
    known = None if "known" not in contract.thresholds else statistics.positive_known.astype(np.float64)

    def samples(features: Array, truth: Integers, known: Array | None) -> _Samples:
        return _Samples(features, _discriminant(metric, means, features), known, truth)

    positives = statistics.positive_features.astype(np.float64)
    truth = statistics.positive_labels.astype(np.int64)
    return _Knowledge(
        contract=contract,
        labels=labels,
        metric=metric,
        means=means,
        center=means.mean(0),
        examples=samples(positives, truth, known),
        drawn=samples(drawn, classes, None if known is None else random.choice(known, DRAWN)),
        threshold=logit(np.array(threshold)).item(),
        distances=metric.distances(positives, means)[np.arange(len(truth)), truth],
    )


def _discriminant(metric: Metric, means: Array, features: Array) -> Array:
    """Returns the probabilities [N, C] by linear discriminant analysis of features [N, D].

    They stand for those of the model, which the model file does not hold for its examples. On photos that it
    never saw, the released model names 96 % as this does.
    """
    return softmax(-HEAD_SCALE / 2 * metric.distances(features, means))


def _fit(knowledge: _Knowledge, examples: _Samples, photos: _Samples) -> LearnedState:
    """Returns the state without its measurements and photos."""
    shown = photos.take(photos.truth >= 0)
    rows, weights, bias = _fit_head(knowledge, examples, shown)
    state = LearnedState(
        model_id=knowledge.contract.model_id,
        created=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        labels=knowledge.labels,
        classes=len(knowledge.means),
        rows=tuple(rows),
        weights=weights.T.astype(np.float32),
        bias=bias.astype(np.float32),
        **_fit_detector(knowledge, shown),
        nearness=NEARNESS,
        reject_weights=np.zeros(weights.shape[0], np.float32),
        reject_bias=0.0,
        photos={},
        measured=Measured({}, 1, 0, 0),
    )
    none = photos.take(photos.truth < 0)
    if not len(none.truth) or none.known is None:
        return state
    reject_weights, reject_bias = _fit_rejection(knowledge, state, examples.join(shown), none)
    return replace(state, reject_weights=reject_weights.astype(np.float32), reject_bias=reject_bias)


def _fit_head(knowledge: _Knowledge, examples: _Samples, shown: _Samples) -> Head:
    """Returns what the logits of some classes change by."""
    classes = len(knowledge.means)
    old = shown.truth < classes
    # The class that the photo shows, and the one that the model takes it for.
    changed = set(shown.truth[old].tolist()) | set(shown.probabilities[old].argmax(1).tolist())
    rows = sorted(changed | set(range(classes, len(knowledge.labels))))
    samples = examples.join(shown)
    logits = np.zeros((len(samples.truth), len(knowledge.labels)))
    logits[:, :classes] = np.log(np.maximum(samples.probabilities, SMALLEST_PROBABILITY))
    targets = np.eye(len(knowledge.labels))[samples.truth]
    targets[: len(examples.truth), :classes] = examples.probabilities  # which need not change
    counts = np.bincount(shown.truth, minlength=len(knowledge.labels))
    each = NEW_CLASS_WEIGHT / np.maximum(counts, 1)
    each[:classes] = np.minimum(each[:classes], CORRECTED_WEIGHT)
    weight = np.concatenate(
        [np.full(len(examples.truth), EXAMPLES_WEIGHT / max(len(examples.truth), 1)), each[shown.truth]]
    )
    weights, bias = fit_softmax(
        knowledge.metric, knowledge.center, samples.features, logits, targets, weight, rows
    )
    for at, position in enumerate(rows):
        photos = shown.take(shown.truth == position)
        if position >= classes and len(photos.truth):  # a fit without a part of the photos may have none
            head = rows, weights, bias
            bias[at] += _bias_of_new_class(knowledge, examples, head, position, photos, each[position])
    return rows, weights, bias


def _bias_of_new_class(
    knowledge: _Knowledge, examples: _Samples, head: Head, position: int, photos: _Samples, weight: float
) -> float:
    """Returns what to add to the bias of a new class, 0 or more, so that it gets more of its photos.

    Few photos of a class that resembles the model's classes pull the fit too little. The bias rises until the
    fit misses MISSED_SHARE of such photos, or until the class takes its share of photos of other classes,
    whose margins have the mean and standard deviation of those of the examples. The fit has seen the examples
    and keeps them away from the class, more so with more photos: their number divides the share. The margin
    of a photo in a fit without it is at least its margin minus its own contribution, which is its dual
    coefficient times its squared length in the kernel (Jaakkola and Haussler, "Probabilistic kernel
    regression models", 1999).
    """
    count, metric = len(photos.truth), knowledge.metric
    enough = len(examples.truth) >= MIN_EXAMPLES
    samples, share = (examples, TAKEN_SHARE / max(count, 3)) if enough else (knowledge.drawn, TAKEN_DRAWN)
    own = metric.distances(samples.features, photos.features.mean(0, keepdims=True))[:, 0]
    others = _margins(knowledge, head, position, samples, own * _shrinkage(count))
    taken = share / (len(knowledge.labels) - len(knowledge.means))
    allowed = float(others.mean() - NormalDist().inv_cdf(taken) * others.std())
    margins = _margins(knowledge, head, position, photos, _unseen_distances(knowledge, photos))
    lengths = metric.distances(photos.features, knowledge.center[np.newaxis])[:, 0]
    unseen = margins - weight * lengths * sigmoid(-margins) / PENALTY
    return max(0.0, -max(allowed, float(np.quantile(unseen, MISSED_SHARE))))


def _margins(knowledge: _Knowledge, head: Head, position: int, samples: _Samples, own: Array) -> Array:
    """Returns the logit [N] of a new class minus the largest of the model's classes.

    `own` [N] are the distances to the mean of the new class.
    """
    rows, weights, bias = head
    changes = samples.features @ weights + bias
    logits = np.log(np.maximum(samples.probabilities, SMALLEST_PROBABILITY))
    old = [at for at, row in enumerate(rows) if row < len(knowledge.means)]
    logits[:, [rows[at] for at in old]] += changes[:, old]
    nearest = knowledge.metric.distances(samples.features, knowledge.means).min(1)
    new = changes[:, rows.index(position)] + NEARNESS * (nearest - own)
    return np.asarray(new - logits.max(1), np.float64)


def _shrinkage(count: int) -> float:
    """Returns the factor of distances to the mean of a number of photos, which is uncertain."""
    return 1 / (1 + 1 / count)


def _unseen_distances(knowledge: _Knowledge, photos: _Samples) -> Array:
    """Returns the distance [N] of each photo of a group from the mean of the others, times `_shrinkage`.

    It stands for the distance of a photo that is not among them.
    """
    if (count := len(photos.truth)) == 1:
        return np.full(count, knowledge.typical)
    mean = photos.features.mean(0, keepdims=True)
    to_mean = knowledge.metric.distances(photos.features, mean)[:, 0]
    return to_mean * (count / (count - 1)) ** 2 * _shrinkage(count - 1)


def _fit_detector(knowledge: _Knowledge, shown: _Samples) -> dict[str, Any]:
    """Returns the fields of LearnedState that let photos of the taught classes be known."""
    metric, classes = knowledge.metric, len(knowledge.means)
    limit = float(np.quantile(knowledge.distances, TYPICAL_SHARE))
    is_unknown = np.zeros(len(shown.truth), bool)
    if shown.known is not None:
        is_unknown = logit(shown.known) < knowledge.threshold
    groups, means, shrinkage, limits, sensitivities = [], [*knowledge.means], [], [], []
    for position in sorted(set(shown.truth.tolist())):
        photos = shown.take((shown.truth == position) & (is_unknown | (position >= classes)))
        if not len(photos.truth):
            continue
        distances = _unseen_distances(knowledge, photos)
        groups.append(position)
        means.append(photos.features.mean(0))
        shrinkage.append(_shrinkage(len(photos.truth)))
        limits.append(max(limit, float(np.quantile(distances, TYPICAL_SHARE))))
        sensitivities.append(_sensitivity(knowledge, photos, distances))
    scaled = metric.times(np.array(means))
    arrays = {
        "means": scaled,
        "offsets": (scaled * np.array(means)).sum(1),
        "inverse_variances": metric.inverse_variances,
        "axes": metric.axes,
        "shrinkage": np.array(shrinkage),
        "limits": np.array(limits),
        "sensitivities": np.array(sensitivities),
    }
    return {"groups": tuple(groups), **{name: array.astype(np.float32) for name, array in arrays.items()}}


def _sensitivity(knowledge: _Knowledge, photos: _Samples, distances: Array) -> float:
    """Returns the smallest sensitivity that lets KNOWN_SHARE of a group's photos be known."""
    if photos.known is None:
        return 0.0
    missing = knowledge.threshold - logit(photos.known)
    nearest = knowledge.metric.distances(photos.features, knowledge.means).min(1)
    lead = np.maximum((nearest - distances) / knowledge.typical, 1e-6)
    needed = np.where(missing > 0, missing / lead, 0)
    smallest, largest = SENSITIVITIES
    sensitivity = np.clip(np.quantile(np.minimum(needed, largest), KNOWN_SHARE), smallest, largest)
    return float(sensitivity) / knowledge.typical


def _fit_rejection(
    knowledge: _Knowledge, state: LearnedState, classes: _Samples, none: _Samples
) -> tuple[Array, float]:
    """Returns the weights [D] and the bias that let `known` reject photos of none of the classes."""

    def logits_of(samples: _Samples) -> Array:
        _, known = state.apply(samples.probabilities, samples.known, samples.features)
        assert known is not None
        return logit(known) - knowledge.threshold

    features = np.concatenate([classes.features, none.features])
    logits = np.zeros((len(features), 2))
    logits[:, 0] = np.concatenate([logits_of(classes), logits_of(none)])
    shows_class = np.arange(len(features)) < len(classes.truth)
    targets = np.stack([shows_class, ~shows_class], 1).astype(np.float64)
    weight = np.where(shows_class, 1.0, REJECTED_WEIGHT / len(none.truth))
    weights, biases = fit_softmax(knowledge.metric, knowledge.center, features, logits, targets, weight, [0])
    change = knowledge.drawn.features @ weights[:, 0] + biases[0]
    raised = bias_to_add(logits_of(knowledge.drawn), change, MAX_MORE_REJECTED)
    return weights[:, 0], float(biases[0]) + raised


def _measure(knowledge: _Knowledge, state: LearnedState, photos: _Samples, folds: Integers) -> Measured:
    """Counts right answers before and after, and by fits that did not use the photo."""
    examples = knowledge.examples
    unseen = _right(knowledge, state, photos)  # of the photos that no fit used
    example_folds = np.random.default_rng(SEED).permutation(len(examples.truth)) % FOLDS
    examples_after = np.zeros(len(examples.truth), bool)
    for fold in range(FOLDS):
        part, example_part = folds == fold, example_folds == fold
        used = (folds >= 0) & ~part
        fitted = _fit(knowledge, examples.take(~example_part), photos.take(used))
        unseen[part] = _right(knowledge, fitted, photos.take(part))
        examples_after[example_part] = _right(knowledge, fitted, examples.take(example_part))
    before, after = _right(knowledge, None, photos), _right(knowledge, state, photos)
    labels = {}
    for position, label in enumerate((*knowledge.labels, NONE_LABEL)):
        chosen = photos.truth == (position if label != NONE_LABEL else -1)
        if chosen.any():
            counts = (int(right[chosen].sum()) for right in (before, after, unseen))
            labels[label] = LabelResult(int(chosen.sum()), *counts)
    return Measured(
        labels,
        examples=len(examples.truth),
        examples_right_before=int(_right(knowledge, None, examples).sum()),
        examples_right_after=int(examples_after.sum()),
    )


def _right(knowledge: _Knowledge, state: LearnedState | None, samples: _Samples) -> NDArray[np.bool_]:
    """Whether each sample gets the right answer, without or with a state: its label, or unknown."""
    probabilities: NDArray[Any] = samples.probabilities
    known = samples.known
    if state is not None:
        probabilities, known = state.apply(probabilities, known, samples.features)
    named = np.ones(len(samples.truth), bool) if known is None else logit(known) >= knowledge.threshold
    right = named & (probabilities.argmax(1) == samples.truth)
    return np.asarray(np.where(samples.truth < 0, ~named, right), bool)


def _warnings(state: LearnedState) -> Iterator[str]:
    measured = state.measured
    for label, result in measured.labels.items():
        if label in state.new_labels and result.photos < FEW_PHOTOS:
            photos = pluralize(result.photos, "photo")
            yield f"{label}: the result of {photos} is not reliable: teach {FEW_PHOTOS} or more, better 20"
        elif 10 * result.right_unseen < 7 * result.photos and label in state.new_labels:
            yield (
                f"{label}: {result.right_unseen} of {result.photos} photos are right in a fit that did not "
                "use them: teach more photos of it"
            )
    lost = measured.examples_right_before - measured.examples_right_after
    if lost > MAX_LOST * measured.examples:
        yield (
            f"{lost} of {measured.examples} known photos are no longer right: check the labels of the taught "
            "photos, or undo"
        )
