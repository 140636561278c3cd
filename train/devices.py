"""What there is to compute on."""

from __future__ import annotations

import keras


def gpus() -> list[str]:
    """The GPUs that the backend sees, by Keras's names."""
    try:
        return list(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # JAX's word for none
        return []
