"""Classifies pictures on a device that has numpy, Pillow and one inference engine.

from runtime import Classifier
print(Classifier("models/flowers")("photo.jpg").answer)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.inference.classifier import Classifier
    from runtime.inference.prediction import Prediction

__all__ = ["Classifier", "Prediction"]


def __getattr__(name: str) -> Any:
    # Imported when it is used: `import runtime` alone must not load numpy and Pillow.
    if name in __all__:
        from runtime.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
