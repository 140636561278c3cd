"""The graph that ships: a run's Keras model, held to the contract, and the SavedModel that every format comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from runtime.errors import UserError

if TYPE_CHECKING:
    from train.run import Run

OUTPUTS = ("probabilities", "known")  # what the contract has; `known` only where the model learnt it


class GraphError(UserError):
    """A model that cannot be deployed as it is."""


def deployable(run: Run) -> keras.Model:
    """The run's model, float32: `image` uint8 [N, H, W, 3] → `probabilities` float32 [N, C] (and `known` [N, 1]).

    Raises GraphError when the model does not keep the contract: a file must be replaceable by any other.
    """
    model = run.model()
    where = f"{run.path / 'model.keras'}"
    image = model.inputs[0]
    if len(model.inputs) != 1 or image.name != "image" or image.dtype != "uint8" or image.shape[3] != 3:
        raise GraphError(
            f"{where}: takes {image.name} {image.dtype} {image.shape}, not image uint8 [N, H, W, 3]"
        )
    outputs = named_outputs(model)
    if "probabilities" not in outputs or not set(outputs) <= set(OUTPUTS):
        raise GraphError(f"{where}: gives {', '.join(outputs)}, not probabilities; train it again")
    probabilities = outputs["probabilities"]
    if probabilities.dtype != "float32" or probabilities.shape[-1] != len(run.classes):
        raise GraphError(
            f"{where}: gives {probabilities.dtype} {probabilities.shape} for {len(run.classes)} classes; train it again"
        )
    return model


def named_outputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The model's outputs by the names of the layers that give them."""
    return dict(zip(model.output_names, model.outputs, strict=True))


def save(model: keras.Model, folder: Path, batch: int | None) -> None:
    """Writes a SavedModel whose `serving_default` is image → outputs by name, with this batch size (None: any)."""
    names = model.output_names

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, keras.tree.flatten(model(image, training=False)), strict=True))

    # ExportArchive and not tf.saved_model.save: the latter does not track a Keras 3 model's variables, and the file
    # converted from it comes out without its weights, and without an error.
    archive = keras.export.ExportArchive()
    archive.track(model)
    image = tf.TensorSpec([batch, *model.inputs[0].shape[1:]], tf.uint8, name="image")
    archive.add_endpoint("serving_default", serve, input_signature=[image])
    archive.write_out(str(folder), verbose=False)
