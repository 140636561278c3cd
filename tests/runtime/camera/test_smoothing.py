"""The moving average of model outputs, and which predictions count as a change."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.camera.flags import DEFAULT_CONFIRM
from runtime.camera.smoothing import (
    ChangeDetector,
    MovingAverage,
    smooth_over_frames,
    smooth_over_seconds,
)
from runtime.inference.prediction import ClassScore, ModelOutput, Prediction

LABELS = ("daisy", "roses", "tulips")


def output(*probabilities: float, known: float | None = None) -> ModelOutput:
    return ModelOutput(np.array(probabilities, np.float32), known, 1.0)


def to_prediction(given: ModelOutput) -> Prediction:
    best = int(np.argmax(given.probabilities))
    probability = float(given.probabilities[best])
    known = None if given.known is None else given.known >= 0.5
    return Prediction("0", LABELS[best], probability, known, (ClassScore(LABELS[best], probability),), {})


def changes(
    outputs: list[ModelOutput], seconds: float, interval: float = 1 / 30, confirm: int = DEFAULT_CONFIRM
) -> list[str]:
    """The answers that a ChangeDetector prints for outputs that come `interval` seconds apart."""
    average, printed = MovingAverage(smooth_over_seconds(seconds)), list[str]()
    detector = ChangeDetector(confirm)
    for number, raw in enumerate(outputs):
        smoothed = to_prediction(average.update(raw, number * interval))
        if detector.is_change(smoothed, to_prediction(raw)):
            printed.append(smoothed.answer)
    return printed


def test_the_weight_of_an_output_depends_on_frames_or_on_seconds() -> None:
    assert smooth_over_frames(0)(9) == smooth_over_frames(1)(9) == 1
    assert smooth_over_frames(3)(9) == 0.5
    assert smooth_over_seconds(0)(0.1) == 1
    assert smooth_over_seconds(1)(1) == pytest.approx(1 - np.exp(-1))
    assert smooth_over_seconds(0.5)(1e-9) == pytest.approx(0, abs=1e-6)
    assert smooth_over_seconds(0.5)(60) == pytest.approx(1)


def test_the_average_lags_behind_a_change() -> None:
    average = MovingAverage(smooth_over_frames(3))
    assert average.update(output(1, 0, 0, known=1), 0).probabilities.tolist() == [1, 0, 0]
    second = average.update(output(0, 1, 0, known=0), 1)
    assert second.probabilities.tolist() == [0.5, 0.5, 0] and second.known == 0.5
    average.reset()
    assert average.update(output(0, 1, 0), 2).probabilities.tolist() == [0, 1, 0]


def test_the_weight_follows_the_seconds_since_the_last_output() -> None:
    average = MovingAverage(lambda since: since)
    average.update(output(1, 0, 0), 10)
    assert average.update(output(0, 1, 0), 10.25).probabilities.tolist() == [0.75, 0.25, 0]
    assert average.update(output(0, 1, 0), 10.75).probabilities.tolist() == [0.375, 0.625, 0]


def test_a_label_that_only_the_average_passes_through_is_no_change() -> None:
    roses, tulips = [output(0.4, 0.6, 0)] * 60, [output(0.4, 0, 0.6)] * 60
    # Halfway, the average is 0.4 daisy, 0.3 roses, 0.3 tulips.
    assert changes(roses + tulips, seconds=0.5) == ["roses", "tulips"]


def test_frames_in_transition_are_no_change() -> None:
    roses, blurred, tulips = [output(0, 1, 0)] * 5, [output(1, 0, 0)], [output(0, 0, 1)] * 5
    assert changes(roses + blurred * (DEFAULT_CONFIRM - 1) + tulips, seconds=0) == ["roses", "tulips"]
    assert changes(roses + blurred * DEFAULT_CONFIRM + tulips, seconds=0) == ["roses", "daisy", "tulips"]


@pytest.mark.parametrize("confirm", [1, 3, 5])
def test_a_new_answer_counts_after_the_frames_that_confirm_it(confirm: int) -> None:
    roses, tulips = output(0, 1, 0), output(0, 0, 1)
    too_few = [roses] + [tulips] * (confirm - 1) + [roses]
    assert changes(too_few, seconds=0, confirm=confirm) == ["roses"]
    assert changes([roses] + [tulips] * confirm, seconds=0, confirm=confirm) == ["roses", "tulips"]


def test_the_first_answer_counts_at_once_and_a_return_to_it_is_no_change() -> None:
    roses, tulips = output(0, 1, 0), output(0, 0, 1)
    assert changes([roses], seconds=0.5) == ["roses"]
    assert changes([roses, tulips, tulips, roses, roses, roses, roses], seconds=0) == ["roses"]


def test_unknown_is_one_answer_whatever_its_nearest_label_is() -> None:
    seen = [output(0, 1, 0, known=1)] * 3
    strange = [output(1, 0, 0, known=0), output(0, 1, 0, known=0), output(0, 0, 1, known=0)]
    assert changes(seen + strange * 2, seconds=0) == ["roses", "unknown"]
