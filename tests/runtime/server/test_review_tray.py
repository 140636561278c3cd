"""ReviewTray: which pictures it keeps, in which order, and what it forgets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.inference.prediction import ClassScore, Prediction
from runtime.server.review_tray import ReviewTray


def picture(seed: int) -> NDArray[np.uint8]:
    """Coarse random colors, 96 x 128 pixels."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return small.repeat(16, 0).repeat(16, 1)


def features(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random(20)


def add(tray: ReviewTray, seed: int, prediction: Prediction, *, changed: bool = False) -> None:
    tray.add(lambda: picture(seed), prediction, features(seed), changed=changed)


def answer(best: float, second: float = 0.0, known: bool | None = True) -> Prediction:
    top = (ClassScore("roses", best), ClassScore("tulips", second))
    return Prediction("photo.jpg", "roses", best, known, top, {"decode": 1.0, "infer": 1.0})


def probabilities(tray: ReviewTray) -> list[float]:
    return [picture.prediction.probability for picture in tray.pictures()]


def test_certain_answers_are_not_collected() -> None:
    tray = ReviewTray()
    for certain in (answer(0.9, 0.1), answer(0.8, 0.2), answer(1.0, known=None)):
        assert not tray.wants(certain)
        add(tray, 1, certain)
    assert tray.pictures() == []


def test_the_most_useful_pictures_come_first() -> None:
    tray = ReviewTray()
    for seed, (prediction, changed) in enumerate(
        (
            (answer(0.6, 0.38), False),
            (answer(0.5, 0.49), False),
            (answer(0.95, 0.05), True),
            (answer(0.9, 0.1, known=False), False),
        )
    ):
        assert tray.wants(prediction, changed=changed)
        add(tray, seed, prediction, changed=changed)
    assert probabilities(tray) == [0.5, 0.6, 0.9, 0.95]


def test_the_least_useful_pictures_make_room() -> None:
    tray = ReviewTray(max_pictures=3)
    for seed, best in enumerate((0.6, 0.52, 0.58, 0.56, 0.54)):
        add(tray, seed, answer(best, 1 - best))
    assert probabilities(tray) == [0.52, 0.54, 0.56]
    assert not tray.wants(answer(0.57, 0.43)) and tray.wants(answer(0.55, 0.45))


def test_the_bytes_of_all_pictures_are_bounded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 200, 200, 3), np.uint8)
    tray = ReviewTray(max_bytes=100_000)
    for seed, pixels in enumerate(noise):
        tray.add(lambda pixels=pixels: pixels, answer(0.5, 0.5), features(seed))  # type: ignore[misc]
    sizes = [len(found.jpeg) for found in tray.pictures()]
    assert 100_000 - max(sizes) < sum(sizes) <= 100_000


def test_of_near_duplicates_the_more_useful_one_stays() -> None:
    tray, frame = ReviewTray(), features(1)
    for moved, best in ((frame, 0.56), (frame + 0.01, 0.52), (frame - 0.01, 0.6)):
        tray.add(lambda: picture(1), answer(best, 1 - best), moved)
    assert probabilities(tray) == [0.52]
    add(tray, 2, answer(0.54, 0.46))
    assert probabilities(tray) == [0.52, 0.54]


def test_features_of_another_model_do_not_compare() -> None:
    tray = ReviewTray()
    for length in (20, 21):
        tray.add(lambda: picture(1), answer(0.5, 0.5), np.ones(length))
    assert len(tray.pictures()) == 2


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_picture_that_a_person_decided_about_does_not_return(elsewhere: bool) -> None:
    tray = ReviewTray()
    add(tray, 1, answer(0.5, 0.5))
    (found,) = tray.pictures()
    if elsewhere:
        tray.decide(features(1))
    else:
        tray.remove(found.id)
    add(tray, 1, answer(0.5, 0.5))
    assert tray.pictures() == []
    for act in (tray.get, tray.remove):
        with pytest.raises(KeyError):
            act(found.id)


def test_pictures_that_are_certain_after_learning_leave() -> None:
    tray = ReviewTray()
    for seed in range(3):
        add(tray, seed, answer(0.5, 0.49))
    shown = {found.jpeg: found for found in tray.pictures()}
    assert Image.open(io.BytesIO(next(iter(shown)))).size == (128, 96)
    version = tray.version
    answers = dict(zip(shown, (answer(0.95), answer(0.6, 0.4), answer(0.9, 0.1, known=False)), strict=True))
    tray.refresh(lambda jpeg: answers[jpeg])
    assert probabilities(tray) == [0.6, 0.9] and tray.version != version
