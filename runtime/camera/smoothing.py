"""Smoothing of a camera's predictions, and the detection of a change that is more than noise."""

from collections.abc import Callable
from math import exp

import numpy as np

from runtime.camera.flags import DEFAULT_CONFIRM, DEFAULT_SMOOTHING_SECONDS
from runtime.inference.prediction import ModelOutput, Prediction

Smoothing = Callable[[float], float]  # seconds since the last output -> weight of the new output, 0-1


def smooth_over_seconds(seconds: float) -> Smoothing:
    """Returns the weight of a new output in an exponential moving average with this time constant.

    0 seconds turn smoothing off.
    """
    return lambda since: 1 - exp(-since / seconds) if seconds > 0 else 1.0


def smooth_over_frames(frames: float) -> Smoothing:
    """Returns the weight of a new output in an average that lags as much as the mean of `frames` frames."""
    return lambda since: 2 / (max(1.0, frames) + 1)


DEFAULT_SMOOTHING = smooth_over_seconds(DEFAULT_SMOOTHING_SECONDS)


class MovingAverage:
    """The exponential moving average of model outputs."""

    def __init__(self, smoothing: Smoothing) -> None:
        self._smoothing = smoothing
        self._average: ModelOutput | None = None
        self._source: object = None
        self._updated = 0.0

    def reset_if_changed(self, source: object) -> None:
        """Forgets the outputs so far if they come from another source, such as another model."""
        if source != self._source:
            self._source = source
            self.reset()

    def reset(self) -> None:
        """Forgets the outputs so far."""
        self._average = None

    def update(self, output: ModelOutput, now: float) -> ModelOutput:
        """Returns the average after `output`, which is ready at `now` (seconds); `ms` is the output's own."""
        old, self._average = self._average, output
        if old is not None and len(old.probabilities) == len(output.probabilities):  # else it learned a class
            weight = self._smoothing(now - self._updated)
            known = None
            if output.known is not None and old.known is not None:
                known = old.known + weight * (output.known - old.known)
            change = output.probabilities - old.probabilities
            self._average = ModelOutput(old.probabilities + np.float32(weight) * change, known, output.ms)
        self._updated = now
        return self._average


class ChangeDetector:
    """Detects when a camera's answer, a label or "unknown", changes.

    A new answer counts after `confirm` frames in a row whose smoothed and unsmoothed predictions both give
    it. The smoothed average alone may pass through labels that no frame showed. The first answer counts at
    once.
    """

    def __init__(self, confirm: int = DEFAULT_CONFIRM) -> None:
        self._confirm = confirm
        self._answer: str | None = None
        self._candidate = ""
        self._agreeing = 0

    def is_change(self, smoothed: Prediction, unsmoothed: Prediction, *, at_once: bool = False) -> bool:
        """Whether the answer changes with this frame; call it for each frame, in order.

        With `at_once`, a new answer needs no other frames that confirm it.
        """
        answer = smoothed.answer
        agrees = answer == unsmoothed.answer
        self._agreeing = (self._agreeing + 1 if answer == self._candidate else 1) if agrees else 0
        self._candidate = answer
        confirmed = at_once or self._answer is None or self._agreeing >= self._confirm
        if not confirmed or answer == self._answer:
            return False
        self._answer = answer
        return True
