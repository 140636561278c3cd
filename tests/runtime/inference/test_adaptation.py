"""The fit rejects a scene, keeps the classes, and measures itself on photos that it has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import ModelError, UserError
from runtime.inference import adaptation
from runtime.inference.adaptation import SceneFeatures, check_adaptable, fit_correction
from runtime.inference.correction import logit
from runtime.model_file.loader import open_model
from tests.runtime.scene import (
    EXAMPLES,
    class_pictures,
    compute_features,
    compute_known,
    make_scene_contract,
    make_scene_statistics,
    scene_pictures,
)

STATISTICS = make_scene_statistics()
CONTRACT = make_scene_contract(STATISTICS)


def observe(pictures: NDArray[np.uint8]) -> SceneFeatures:
    features = compute_features(pictures)
    return SceneFeatures([f"{at}.png" for at in range(len(features))], compute_known(features), features)


def named(scene: SceneFeatures, apply: object = None) -> float:
    known = scene.known if apply is None else apply(scene.known, scene.features)  # type: ignore[operator]
    return float((known >= 0.5).mean())


def test_other_photos_of_the_scene_are_rejected_and_other_photos_of_the_classes_are_not() -> None:
    result = fit_correction(CONTRACT, STATISTICS, observe(scene_pictures(50, seed=1)))
    scene, classes = observe(scene_pictures(300, seed=2)), observe(class_pictures(300, seed=3)[0])
    apply = result.correction.apply
    assert named(scene) > 0.8 and named(classes) > 0.95
    assert named(scene, apply) < 0.1 and named(classes, apply) > 0.95
    # The printed figures are those of unseen photos.
    assert result.named_after / result.photos == pytest.approx(named(scene, apply), abs=0.08)
    assert result.rejected_after <= result.rejected_before + 1
    assert (result.photos, result.examples, result.left_out) == (50, EXAMPLES, ())


def test_a_correction_never_names_what_the_model_rejects() -> None:
    result = fit_correction(CONTRACT, STATISTICS, observe(scene_pictures(50, seed=1)))
    random = np.random.default_rng(0)
    features, known = random.uniform(-5, 5, (1000, 12)), random.uniform(size=1000)
    assert (result.correction.apply(known, features) <= known + 1e-12).all()


def test_the_fit_is_reproducible() -> None:
    scene = observe(scene_pictures(20, seed=1))
    one, other = (fit_correction(CONTRACT, STATISTICS, scene).correction for _ in range(2))
    assert np.array_equal(one.weights, other.weights) and one.bias == other.bias


def test_figures_are_of_unseen_photos() -> None:
    """Pictures without anything in common can be learned by heart, but not predicted."""
    random = np.random.default_rng(0)
    features = compute_features(class_pictures(12, seed=5)[0])
    wide = np.concatenate([features, random.normal(size=(12, 400))], axis=1)
    statistics = replace(
        STATISTICS,
        **{
            name: np.concatenate(
                [getattr(STATISTICS, name), np.zeros((*getattr(STATISTICS, name).shape[:-1], 400))], axis=-1
            ).astype(getattr(STATISTICS, name).dtype)
            for name in ("means", "variances", "factors", "positives", "offset", "step")
        },
    )
    known = np.full(12, 0.6)
    scene = SceneFeatures([str(at) for at in range(12)], known, wide)
    result = fit_correction(CONTRACT, statistics, scene)
    learned = (result.correction.apply(known, wide) >= 0.5).mean()
    assert learned == 0 and result.named_after >= 6


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_few_photos_are_accepted(count: int) -> None:
    result = fit_correction(CONTRACT, STATISTICS, observe(scene_pictures(count, seed=1)))
    assert result.photos == count and np.isfinite(result.correction.weights).all()
    assert result.rejected_after <= result.rejected_before + 1


def test_equal_frames_of_a_still_scene_are_accepted() -> None:
    frames = np.repeat(scene_pictures(1, seed=1), 40, axis=0)
    result = fit_correction(CONTRACT, STATISTICS, observe(frames))
    assert (result.named_before, result.named_after) == (40, 0)


def test_photos_that_show_a_class_are_left_out() -> None:
    scene, flowers = scene_pictures(50, seed=1), class_pictures(6, seed=4)[0]
    flowers[:] = np.maximum(flowers, 150)  # the brightest: the model is sure of them
    mixed = np.concatenate([scene[:20], flowers, scene[20:]])
    result = fit_correction(CONTRACT, STATISTICS, observe(mixed))
    shown = {f"{at}.png" for at in range(20, 26)}
    assert len(shown & set(result.left_out)) >= 3 and set(result.left_out) <= shown
    assert result.photos == 56 and result.named_after >= len(result.left_out)
    assert named(observe(scene_pictures(300, seed=2)), result.correction.apply) < 0.15


def test_photos_of_the_classes_alone_are_an_error() -> None:
    with pytest.raises(
        UserError, match=r"\d+ of 60 photos look like photos of the classes, such as "
    ) as caught:
        fit_correction(CONTRACT, STATISTICS, observe(class_pictures(60, seed=3)[0]))
    assert "\n" not in str(caught.value)


def test_a_correction_that_rejects_too_many_photos_of_the_classes_is_refused() -> None:
    """Two of 40 examples are rejected without it; the third would be over 5 %."""
    known = STATISTICS.positive_known.copy()
    known[:2], known[2:6] = 0.4, 0.5001
    statistics = replace(STATISTICS, positive_known=known)
    features = compute_features(class_pictures(50, seed=7)[0])
    scene = SceneFeatures([str(at) for at in range(50)], np.full(50, 0.5001), features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "MAX_MORE_EXAMPLES", 0.05)
        patch.setattr(adaptation, "MAX_MORE_DRAWN", 0.2)
        with pytest.raises(
            UserError, match=r"would reject \d+ of 40 photos of the classes \(2 without it, limit 5%\)"
        ):
            fit_correction(CONTRACT, statistics, scene)


def test_the_threshold_of_the_contract_is_kept() -> None:
    """A model whose `known` is shifted together with its threshold gets the same correction."""
    scene = observe(scene_pictures(30, seed=1))
    shift = 1.5

    def shifted(known: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-(logit(known) + shift))))

    threshold = shifted(np.array(0.5)).item()
    contract = replace(CONTRACT, thresholds={"known": threshold})
    statistics = replace(STATISTICS, positive_known=shifted(STATISTICS.positive_known).astype(np.float32))
    plain = fit_correction(CONTRACT, STATISTICS, scene)
    moved = fit_correction(contract, statistics, replace(scene, known=shifted(scene.known)))
    assert np.allclose(plain.correction.weights, moved.correction.weights, atol=1e-2)
    assert plain.correction.bias == pytest.approx(moved.correction.bias, abs=1e-2)


def test_a_model_without_known_or_without_features_is_refused(colours: Path, knowing: Path) -> None:
    for model, reason in ((colours, "does not detect unknown"), (knowing, "contract version 1")):
        with pytest.raises(ModelError, match=reason):
            check_adaptable(open_model(model))
