"""A model's result for one picture, and how the commands print it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.common.terminal import can_print, has_styles
from runtime.common.text import display_width, pad

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN = "unknown"
BAR_WIDTH = 10


@dataclass(frozen=True)
class ClassScore:
    """A class and its probability."""

    label: str
    probability: float  # 0 to 1


@dataclass(frozen=True)
class Prediction:
    """The result for one picture; `python -m runtime.classify --json` prints these fields."""

    source: str
    label: str  # the most probable class, even when `known` is False: see `answer`
    probability: float
    known: bool | None  # whether the picture looks like any of the classes; None if the model cannot say
    top: tuple[ClassScore, ...]  # the most probable classes; the first one is `label`
    ms: Mapping[str, float]  # "decode" and "infer", milliseconds

    @property
    def answer(self) -> str:
        """The label, or "unknown" when the picture looks like none of the classes."""
        return UNKNOWN if self.known is False else self.label


@dataclass(frozen=True)
class ModelOutput:
    """The model's raw outputs for one picture."""

    probabilities: NDArray[np.float32]  # [C], in the order of the labels
    known: float | None  # the output `known`, 0 to 1, corrected; None when the model has none
    ms: float  # the engine's time
    features: NDArray[np.float32] | None = None  # [D]; None when the model does not return them
    labels: tuple[str, ...] = ()  # of `probabilities`: another thread may teach the classifier new ones


def json_line(prediction: Prediction, **more: object) -> str:
    """Returns one line of JSON with the prediction's fields and `more` of them."""
    # dataclasses.asdict() would copy each field deeply, for every photo that the service classifies.
    return json.dumps({**vars(prediction), "top": [vars(score) for score in prediction.top], **more})


def answer_columns(labels: Sequence[str]) -> Callable[[Prediction, str], list[str]]:
    """Returns a function (prediction, remark) → columns: the answer, the other classes, the remark.

    The answers of one model with these labels align. A terminal gets bold, dim text and a bar.
    """
    styled = has_styles()
    bold, dim, plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if styled else ("", "", "")
    label_width = max(map(display_width, labels))
    has_bar = styled and can_print("█░")

    def columns(prediction: Prediction, remark: str) -> list[str]:
        best, *others = prediction.top
        if prediction.known is False:
            answer = f"{bold}{UNKNOWN}{plain} (nearest: {best.label} {best.probability:.2f})"
        else:
            full = round(BAR_WIDTH * best.probability)
            bar = f"  {'█' * full}{dim}{'░' * (BAR_WIDTH - full)}{plain}" if has_bar else ""
            answer = f"{bold}{pad(best.label, label_width)}{plain}  {best.probability:6.1%}{bar}"
        rest = ", ".join(f"{score.label} {score.probability:.1%}" for score in others)
        return [answer, *(f"{dim}{text}{plain}" for text in (rest, remark) if text)]

    return columns
