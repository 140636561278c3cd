"""The graph that ships: a run's Keras model, held to the contract, and the SavedModel behind every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from runtime.common.errors import UserError

if TYPE_CHECKING:
    from train.run import Run

OUTPUTS = ("probabilities", "known")  # what the contract has; `known` only where the model learnt it
BATCH = 8


class GraphError(UserError):
    """A model that cannot be deployed as it is."""


def serving_model(run: Run) -> keras.Model:
    """The run's model: `image` uint8 [N, H, W, 3] → `probabilities` float32 [N, C], maybe `known` [N, 1].

    Raises GraphError when the model does not keep the contract: a file must be replaceable by any other.
    """
    model = run.load_model()
    where = f"{run.path / 'model.keras'}"
    image = model.inputs[0]
    if len(model.inputs) != 1 or image.name != "image" or image.dtype != "uint8" or image.shape[3] != 3:
        raise GraphError(
            f"{where}: takes {image.name} {image.dtype} {image.shape}, not image uint8 [N, H, W, 3]"
        )
    outputs = named_outputs(model)
    if "probabilities" not in outputs or not set(outputs) <= set(OUTPUTS):
        raise GraphError(f"{where}: gives {', '.join(outputs)}, not probabilities; train it again")
    if "known" in outputs and "known" not in run.thresholds:
        raise GraphError(f"{where}: gives known, but run.json has no threshold for it; train it again")
    probabilities = outputs["probabilities"]
    if probabilities.dtype != "float32" or probabilities.shape[-1] != len(run.classes):
        raise GraphError(
            f"{where}: gives {probabilities.dtype} {probabilities.shape} for {len(run.classes)} classes; "
            "train it again"
        )
    return model


def named_outputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The model's outputs by the names of the layers that give them."""
    return dict(zip(model.output_names, model.outputs, strict=True))


def save_serving_model(model: keras.Model, folder: Path, batch: int | None) -> None:
    """Writes a SavedModel with `serving_default`, image → outputs by name; a batch of None is of any size."""
    names = model.output_names

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, keras.tree.flatten(model(image, training=False)), strict=True))

    # Not tf.saved_model.save: it does not track a Keras 3 model's variables, and the file converted from it
    # comes out without weights, and without an error.
    archive = keras.export.ExportArchive()
    archive.track(model)
    image = tf.TensorSpec([batch, *model.inputs[0].shape[1:]], tf.uint8, name="image")
    archive.add_endpoint("serving_default", serve, input_signature=[image])
    archive.write_out(str(folder), verbose=False)


def predict(
    model: keras.Model, photos: NDArray[np.uint8], step: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    """Parity's reference: outputs by name, `probabilities` [n, C] and maybe `known` [n, 1], for photos uint8
    [n, H, W, 3], on the CPU even beside a GPU.
    """
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in model.output_names}
    with tf.device("/CPU:0"):
        for start in range(0, len(photos), BATCH):
            outputs = keras.tree.flatten(model(photos[start : start + BATCH], training=False))
            for name, output in zip(model.output_names, outputs, strict=True):
                found[name].append(np.asarray(output, np.float32))
            step(len(outputs[0]))
    return {name: np.concatenate(parts) for name, parts in found.items()}
