"""Pictures with uncertain answers, for a person to name: most useful first, without near-duplicates.

They stay in memory and are bounded in number and bytes: a service that restarts forgets them.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.inference.review import ReviewItem, is_near, review_reason, review_score
from runtime.preprocess.preview import encode_preview

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.inference.prediction import Prediction
    from runtime.preprocess.picture import Pixels

MAX_PICTURES = 24
MAX_BYTES = 10_000_000  # of all pictures
DECIDED_KEPT = 200  # features of pictures that a person named or removed


@dataclass(frozen=True)
class ReviewPicture:
    """A picture with its uncertain answer."""

    item: ReviewItem
    prediction: Prediction
    jpeg: bytes
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @property
    def id(self) -> str:
        return self.item.id


class ReviewTray:
    """The uncertain pictures. Any thread may call its methods."""

    def __init__(self, max_pictures: int = MAX_PICTURES, max_bytes: int = MAX_BYTES) -> None:
        self._max_pictures, self._max_bytes = max_pictures, max_bytes
        self._pictures: list[ReviewPicture] = []  # most useful first
        self._decided: deque[NDArray[Any]] = deque(maxlen=DECIDED_KEPT)  # [D] each
        self._lock = Lock()
        self.version = ""  # another text after each change

    def pictures(self) -> list[ReviewPicture]:
        """Returns the pictures, most useful first."""
        with self._lock:
            return list(self._pictures)

    def wants(self, prediction: Prediction, *, changed: bool = False) -> bool:
        """Returns whether a picture with this answer would enter the tray, unless it is a near-duplicate."""
        item = _make_item(prediction, np.empty(0), changed)
        if not review_reason(item):
            return False
        with self._lock:
            is_full = len(self._pictures) >= self._max_pictures
            return not is_full or review_score(item) > review_score(self._pictures[-1].item)

    def add(
        self,
        get_pixels: Callable[[], Pixels],
        prediction: Prediction,
        features: NDArray[Any],
        *,
        changed: bool = False,
    ) -> None:
        """Stores a picture, uint8 [H, W, 3], RGB, with its features [D], if its answer is uncertain.

        Of near-duplicates, the more useful one stays. A near-duplicate of a decided picture is not stored.
        The least useful pictures make room. Raises the exceptions of `get_pixels`.
        """
        item = _make_item(prediction, features, changed)
        if not review_reason(item) or self._has_better(item):
            return
        picture = ReviewPicture(item, prediction, encode_preview(get_pixels()))
        with self._lock:
            self._store([*(old for old in self._pictures if not _are_near(old.item, item)), picture])

    def get(self, id: str) -> ReviewPicture:
        """Returns a picture. Raises KeyError if the tray has no such picture."""
        with self._lock:
            for picture in self._pictures:
                if picture.id == id:
                    return picture
        raise KeyError(id)

    def remove(self, id: str) -> None:
        """Removes a picture that a person decided about. Raises KeyError if the tray has no such picture."""
        self.decide(self.get(id).item.features)

    def decide(self, features: NDArray[Any]) -> None:
        """Removes the near-duplicates of a picture that a person named, and stores none later."""
        with self._lock:
            self._store([old for old in self._pictures if not _is_near(old.item.features, features)])
            self._decided.append(features)

    def refresh(self, classify: Callable[[bytes], Prediction]) -> None:
        """Gets the answers again, with another learned state, and removes pictures that are certain now."""
        updated = {}
        for picture in self.pictures():
            prediction = replace(classify(picture.jpeg), source=picture.prediction.source)
            item = replace(_make_item(prediction, picture.item.features, False), id=picture.id)
            updated[picture.id] = replace(picture, item=item, prediction=prediction)
        with self._lock:
            pictures = [updated.get(picture.id, picture) for picture in self._pictures]
            self._store([picture for picture in pictures if review_reason(picture.item)])

    def _has_better(self, item: ReviewItem) -> bool:
        """Whether the tray has, or a person decided about, a near-duplicate that is at least as useful."""
        with self._lock:
            alike = (old.item for old in self._pictures if _are_near(old.item, item))
            if any(review_score(old) >= review_score(item) for old in alike):
                return True
            return any(_is_near(features, item.features) for features in self._decided)

    def _store(self, pictures: list[ReviewPicture]) -> None:
        pictures = sorted(pictures, key=lambda picture: (-review_score(picture.item), picture.time))
        pictures = pictures[: self._max_pictures]
        while sum(len(picture.jpeg) for picture in pictures) > self._max_bytes:
            pictures.pop()
        self._pictures, self.version = pictures, secrets.token_hex(4)


def _make_item(prediction: Prediction, features: NDArray[Any], changed: bool) -> ReviewItem:
    scores = [score.probability for score in prediction.top]
    probabilities = np.array(scores if len(scores) > 1 else [*scores, 1 - scores[0]])  # with --top 1
    return ReviewItem(secrets.token_hex(8), probabilities, prediction.known, features, changed)


def _are_near(one: ReviewItem, other: ReviewItem) -> bool:
    return _is_near(one.features, other.features)


def _is_near(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two pictures are near-duplicates; the features of different models do not compare."""
    return one.shape == other.shape and is_near(one, other)
