"""Which pictures a person should name: the model is unsure of them, and they are no near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOW_MARGIN = 0.5  # between the two best classes: below are 8 % of unseen photos, 69 % of the misnamed ones
# The least scores of an unknown picture, which may show a new class, and of a changed answer.
UNKNOWN_SCORE, CHANGED_SCORE = 0.6, 0.4
# Two pictures are near-duplicates when the squared distance of their features is at most this share of the
# squared length. Of the same photo, zoomed, shifted, mirrored or brighter, it is 0.001 to 0.04; of two photos
# of roses, 0.09 or more in 999 of 1,000 pairs.
NEAR_DISTANCE = 0.04


@dataclass(frozen=True)
class ReviewItem:
    """A picture, and the outputs of the model and of its learned state for it."""

    id: str
    probabilities: NDArray[Any]  # [C]
    known: bool | None  # None when the model does not decide it
    features: NDArray[Any]  # [D]
    has_changed: bool = False  # whether the answer of a camera changed with this frame


def review_reason(item: ReviewItem) -> str:
    """Returns why a person should look at the picture: "unknown", "low margin" or "changed"; else ""."""
    if item.known is False:
        return "unknown"
    if margin(item.probabilities) < LOW_MARGIN:
        return "low margin"
    return "changed" if item.has_changed else ""


def review_score(item: ReviewItem) -> float:
    """Returns how useful a name for the picture is, 0 to 1: 1 - margin, or more if unknown or changed."""
    score = 1 - margin(item.probabilities)
    if item.known is False:
        score = max(score, UNKNOWN_SCORE)
    return max(score, CHANGED_SCORE) if item.has_changed else score


def margin(probabilities: NDArray[Any]) -> float:
    """Returns the best probability minus the second best, of probabilities [C]."""
    second, best = np.sort(probabilities)[-2:]
    return float(best - second)


def is_near(features: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two pictures with features [D] are near-duplicates."""
    one, two = features.astype(np.float64), other.astype(np.float64)
    return bool(np.square(one - two).sum() <= NEAR_DISTANCE * max(np.square(one).sum(), 1e-12))
