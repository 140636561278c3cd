"""The fit learns new classes and right answers, keeps the classes, and measures itself on unseen photos."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.inference import fitted_photos, learned_fit
from runtime.inference.learned_fit import TaughtOutputs, fit_learned
from runtime.inference.learned_state import MAX_VALUE, LearnedState
from runtime.inference.softmax_regression import softmax
from runtime.model_file.statistics import fit_statistics
from tests.helpers import ROOT
from tests.runtime.scene import (
    EXAMPLES,
    LABELS,
    class_pictures,
    compute_features,
    compute_known,
    make_scene_contract,
    make_scene_statistics,
    scene_pictures,
)
from tests.runtime.taught import compute_probabilities

STATISTICS = make_scene_statistics()
CONTRACT = make_scene_contract(STATISTICS)
Features = NDArray[np.float64]


def taught(*photos: tuple[Sequence[str], Features]) -> TaughtOutputs:
    features = np.concatenate([each for _, each in photos])
    labels = [label for each, _ in photos for label in each]
    ids = [f"{at}.jpg" for at in range(len(labels))]
    return TaughtOutputs(ids, labels, compute_probabilities(features), compute_known(features), features)


def scene(count: int, seed: int, label: str = "scene") -> tuple[list[str], Features]:
    return [label] * count, compute_features(scene_pictures(count, seed))


def answers(state: LearnedState | None, features: Features) -> list[str]:
    probabilities, known = compute_probabilities(features), compute_known(features)
    labels = LABELS if state is None else state.labels
    if state is not None:
        probabilities, known = state.apply(probabilities, known, features)  # type: ignore[assignment]
    best = probabilities.argmax(1)
    return [labels[at] if sure else "unknown" for at, sure in zip(best, known >= 0.5, strict=True)]


def accuracy(state: LearnedState | None, seed: int = 3) -> float:
    pictures, truth = class_pictures(300, seed)
    return float(
        np.mean(
            [
                LABELS[at] == answer
                for at, answer in zip(truth, answers(state, compute_features(pictures)), strict=True)
            ]
        )
    )


@pytest.mark.parametrize(("count", "least"), [(20, 0.95), (5, 0.85), (1, 0.4)])
def test_a_new_class_is_named_and_the_others_are_kept(count: int, least: float) -> None:
    result = fit_learned(CONTRACT, STATISTICS, taught(scene(count, seed=1)))
    _, unseen = scene(200, seed=2)
    assert result.state.new_labels == ("scene",) and "scene" not in answers(None, unseen)
    assert np.mean([answer == "scene" for answer in answers(result.state, unseen)]) >= least
    assert accuracy(result.state) >= accuracy(None) - 0.015


class Resembling:
    """A new class whose mean lies near a class, and differs from all classes in one more feature."""

    truth = np.arange(600) % 3

    def __init__(self, examples: int) -> None:
        self.means = np.zeros((4, 40))
        self.means[range(3), range(3)] = 15
        self.means[3, 0], self.means[3, 3] = 0.7 * 15, 5
        old = self.draw(self.truth[:300], seed=0)
        chosen = slice(examples)
        self.statistics = fit_statistics(
            old, self.truth[:300], old[chosen], self.truth[chosen], np.ones(examples)
        )

    def draw(self, labels: NDArray[np.int64], seed: int) -> Features:
        return np.asarray(self.means[labels] + np.random.default_rng(seed).normal(size=(len(labels), 40)))

    def classify(self, features: Features) -> Features:
        return softmax(-((features[:, np.newaxis] - self.means[:3]) ** 2).sum(2) / 2)

    def teach(self) -> LearnedState:
        photo = self.draw(np.array([3]), seed=1)
        outputs = TaughtOutputs(["1.jpg"], ["x"], self.classify(photo), None, photo)
        return fit_learned(replace(CONTRACT, thresholds={}, features=40), self.statistics, outputs).state

    def right(self, state: LearnedState, labels: NDArray[np.int64]) -> float:
        features = self.draw(labels, seed=2)
        probabilities, _ = state.apply(self.classify(features), None, features)
        return float(np.mean(probabilities.argmax(1) == labels))


def test_one_photo_of_a_class_that_resembles_another_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Resembling(examples=100)
    state = model.teach()
    monkeypatch.setattr(learned_fit, "NEARNESS", 0.0)
    monkeypatch.setattr(learned_fit, "TAKEN_SHARE", 1e-3)  # a low share, so that the lead changes the recall
    bias_alone = model.teach()
    monkeypatch.setattr(learned_fit, "TAKEN_SHARE", 1e-15)  # the bias does not rise
    neither = model.teach()
    usual, bias, none = (model.right(each, np.full(400, 3)) for each in (state, bias_alone, neither))
    assert usual >= 0.5 and usual >= bias + 0.1 and bias >= none + 0.1
    assert model.right(state, model.truth) >= 0.985


def test_few_examples_do_not_limit_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spread of the margins of few examples is uncertain: a class then takes too much."""
    model = Resembling(examples=6)
    limited_by_drawn = model.right(model.teach(), model.truth)
    monkeypatch.setattr(learned_fit, "MIN_EXAMPLES", 0)
    assert limited_by_drawn >= model.right(model.teach(), model.truth) + 0.03


def test_a_new_class_that_the_model_rejects_is_known() -> None:
    """Dark pictures are unknown to the model; as a new class they are known, other dark ones stay unknown."""
    random = np.random.default_rng(0)

    def dark(count: int, upper: float, lower: float) -> Features:
        quarters = np.repeat([[upper, upper, lower, lower]], count, 0)[..., np.newaxis]
        return (quarters + random.uniform(0, 0.1, (count, 4, 3))).reshape(count, 12)

    new, others = dark(60, 0.2, 0.5), dark(60, 0.45, 0.15)
    assert set(answers(None, np.concatenate([new, others]))) == {"unknown"}
    result = fit_learned(CONTRACT, STATISTICS, taught((["dark"] * 20, new[:20])))
    assert np.mean([answer == "dark" for answer in answers(result.state, new[20:])]) > 0.85
    assert np.mean([answer == "unknown" for answer in answers(result.state, others)]) > 0.9


def test_wrong_answers_are_corrected_and_the_others_are_kept() -> None:
    """Pictures of the scene, which the model names in any way, are taught as one of its classes."""
    labels, features = scene(20, 1, "grün")
    result = fit_learned(CONTRACT, STATISTICS, taught((labels, features)))
    assert result.state.new_labels == () and np.mean([one == "grün" for one in answers(None, features)]) < 0.6
    before, after = answers(None, scene(200, 2)[1]), answers(result.state, scene(200, 2)[1])
    known = [at for at, answer in enumerate(before) if answer != "unknown"]
    assert np.mean([after[at] == "grün" for at in known]) > 0.95
    assert accuracy(result.state) >= accuracy(None) - 0.015
    results = result.state.measured.labels["grün"]
    assert results.right_after > results.right_before


def test_photos_of_a_class_that_the_model_rejects_become_known() -> None:
    random = np.random.default_rng(0)
    quarters = random.uniform(0.1, 0.2, (60, 4, 3))
    quarters[:, :2, 1] += 0.5  # dark, with a green upper half
    green = quarters.reshape(60, 12)
    assert set(answers(None, green)) == {"unknown"}
    result = fit_learned(CONTRACT, STATISTICS, taught((["grün"] * 20, green[:20])))
    assert np.mean([answer == "grün" for answer in answers(result.state, green[20:])]) > 0.8
    assert np.mean([answer == "unknown" for answer in answers(result.state, green[:, ::-1])]) > 0.9


def test_photos_of_none_of_the_classes_are_rejected() -> None:
    result = fit_learned(CONTRACT, STATISTICS, taught(scene(20, 1, "none")))
    _, unseen = scene(200, seed=2)
    assert result.state.labels == LABELS
    assert np.mean([answer == "unknown" for answer in answers(None, unseen)]) < 0.3
    assert np.mean([answer == "unknown" for answer in answers(result.state, unseen)]) > 0.9
    assert accuracy(result.state) >= accuracy(None) - 0.03
    assert result.state.measured.labels["none"].right_after == 20


def test_a_new_class_and_none_are_learned_together() -> None:
    """The upside-down scene is a new class, the scene is none of the classes."""
    names, features = scene(20, 1, "none")
    upside_down = compute_features(scene_pictures(20, seed=4)[:, ::-1])
    result = fit_learned(CONTRACT, STATISTICS, taught((names, features), (["new"] * 20, upside_down)))
    unseen = compute_features(scene_pictures(100, seed=5)[:, ::-1])
    assert np.mean([answer == "new" for answer in answers(result.state, unseen)]) > 0.9
    assert np.mean([answer == "unknown" for answer in answers(result.state, scene(100, 6)[1])]) > 0.85


def test_photos_that_are_right_change_nothing() -> None:
    pictures, truth = class_pictures(30, seed=9)
    features = compute_features(pictures)
    right = [at for at, answer in enumerate(answers(None, features)) if answer == LABELS[truth[at]]]
    result = fit_learned(CONTRACT, STATISTICS, taught(([LABELS[truth[at]] for at in right], features[right])))
    unseen = compute_features(class_pictures(300, seed=3)[0])
    assert (
        np.mean(
            [
                one == two
                for one, two in zip(answers(None, unseen), answers(result.state, unseen), strict=True)
            ]
        )
        > 0.98
    )


def test_figures_of_unseen_photos_are_those_of_other_photos() -> None:
    """Pictures without anything in common are learned by heart, but not predicted."""
    random = np.random.default_rng(0)
    features = random.uniform(0.4, 0.9, (24, 12))
    labels = [LABELS[at % 3] for at in range(24)]
    result = fit_learned(CONTRACT, STATISTICS, taught((labels, features)))
    measured = result.state.measured.labels.values()
    assert sum(each.right_after for each in measured) > sum(each.right_unseen for each in measured) + 6
    assert sum(each.photos for each in measured) == 24
    assert result.state.measured.examples == EXAMPLES


def test_the_fit_is_reproducible() -> None:
    one, other = (fit_learned(CONTRACT, STATISTICS, taught(scene(20, seed=1))).state for _ in range(2))
    for name in ("weights", "bias", "means", "limits", "sensitivities"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert one.measured == other.measured


def test_equal_photos_are_accepted() -> None:
    _, features = scene(1, seed=1)
    result = fit_learned(CONTRACT, STATISTICS, taught((["scene"] * 40, np.repeat(features, 40, 0))))
    assert answers(result.state, features) == ["scene"]


def test_a_model_of_one_photo_per_class_learns_a_new_class() -> None:
    """Its classes have no variance."""
    pictures, truth = class_pictures(len(LABELS), seed=8)
    features, (labels, photos) = 4 * compute_features(pictures), scene(20, seed=1)
    statistics = fit_statistics(features, truth, features, truth, np.ones(len(LABELS)))
    assert not statistics.variances.any()
    state = fit_learned(make_scene_contract(statistics), statistics, taught((labels, 4 * photos))).state
    assert max(np.abs(state.means).max(), np.abs(state.offsets).max()) < MAX_VALUE  # else not written
    assert state.measured.labels["scene"].right_after == 20


def test_a_correction_among_many_photos_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that keeps every confirmed picture has more photos than a fit uses."""
    monkeypatch.setattr(fitted_photos, "MAX_FITTED", 60)
    pictures, truth = class_pictures(300, seed=9)
    confirmed = [LABELS[at] for at in truth[:150]], compute_features(pictures[:150])
    more = [LABELS[at] for at in truth[150:]], compute_features(pictures[150:])
    labels, features = scene(1, 2, "grün")
    result = fit_learned(CONTRACT, STATISTICS, taught(confirmed, (labels, features), more))
    assert result.state.measured.labels["grün"].photos == 101
    assert answers(None, features) != labels and answers(result.state, features) == labels


def test_photos_of_too_many_labels_are_an_error() -> None:
    """Thinned out evenly, no label would keep a photo: the state would know none of the classes."""
    labels, features = scene(601, seed=1)
    each = [f"{label} {at}" for at, label in enumerate(labels)]
    with pytest.raises(UserError, match="photos of over 600 labels cannot be learned"):
        fit_learned(CONTRACT, STATISTICS, taught((each, features)))


def test_few_photos_and_lost_examples_give_warnings() -> None:
    few = fit_learned(CONTRACT, STATISTICS, taught(scene(3, seed=1)))
    assert "scene: the result of 3 photos is not reliable" in few.warnings[0]
    pictures, truth = class_pictures(60, seed=9)
    wrong = [LABELS[(at + 1) % 3] for at in truth]
    spoiled = fit_learned(CONTRACT, STATISTICS, taught((wrong, compute_features(pictures))))
    assert any("known photos are no longer right" in line for line in spoiled.warnings)
    assert fit_learned(CONTRACT, STATISTICS, taught(scene(20, seed=1))).warnings == ()


def test_nothing_to_learn_is_an_error() -> None:
    empty = TaughtOutputs([], [], np.zeros((0, 3)), np.zeros(0), np.zeros((0, 12)))
    with pytest.raises(UserError, match="no photos"):
        fit_learned(CONTRACT, STATISTICS, empty)


@pytest.mark.slow
def test_fifty_photos_take_under_a_second_and_200_mb() -> None:
    """Of the fit alone, with as many features as the released model has; the time of one thread is measured.

    The threads of BLAS wait for each other in a loop, which counts as processor time on a busy machine.
    """
    code = r"""
import re, time
import numpy as np
from types import SimpleNamespace
from runtime.inference.softmax_regression import softmax
from runtime.inference.learned_fit import TaughtOutputs, fit_learned
from runtime.model_file.statistics import fit_statistics
random = np.random.default_rng(0)
features, labels = random.normal(1, 0.3, (300, 608)), np.arange(300) % 5
statistics = fit_statistics(features, labels, features[:100], labels[:100], random.uniform(0.5, 1, 100))
contract = SimpleNamespace(thresholds={"known": 0.5}, model_id="0" * 64, labels=tuple("abcde"))
names = ["new"] * 25 + ["a", "b", "none", "c", "d"] * 5
taught = TaughtOutputs(
    [f"{at}.jpg" for at in range(50)], names, random.dirichlet(np.ones(5), 50),
    random.uniform(size=50), random.normal(1.1, 0.3, (50, 608)),
)
started = time.process_time()
fit_learned(contract, statistics, taught).state.to_bytes()
seconds = time.process_time() - started
# Not getrusage: its maximum includes the process that started this one.
print(seconds, re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    seconds, kibibytes = map(float, done.stdout.split())
    assert seconds < 1 and kibibytes < 200 * 1024
