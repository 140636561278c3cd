"""Names the flower in a photo, on a device: numpy, Pillow and one inference engine.

from runtime import Classifier
print(Classifier("models/flowers")("photo.jpg").label)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.classify import Classifier, Prediction

__all__ = ["Classifier", "Prediction"]


def __getattr__(name: str) -> Any:
    # Imported late, because `python -m runtime.classify` warns when its package has imported it already.
    if name in __all__:
        from runtime import classify

        return getattr(classify, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
