"""Answer: a prediction on its way to other programs."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from runtime.inference.prediction import Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Answer:
    """A prediction, its time, and its picture."""

    prediction: Prediction
    time: datetime  # UTC
    # Returns the picture, [h, w, 3], RGB. Called in another thread, and only if a program gets pictures; may
    # raise UserError.
    get_pixels: "Callable[[], NDArray[np.uint8]]"
    is_change: bool = True  # False: the same answer as before, with a newer probability

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the JSON object that other programs get."""
        prediction = self.prediction
        return {
            "source": prediction.source,
            "label": prediction.label,
            "probability": prediction.probability,
            "known": prediction.known,
            "top": [vars(score) for score in prediction.top],
            "time": self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


Publish = Callable[[Answer], None]  # never blocks
