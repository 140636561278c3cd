"""The Keras model that is exported: loaded from a run, checked, and saved as a SavedModel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.model_file.contract import GoldenAnswer
from runtime.model_file.golden import golden_picture

if TYPE_CHECKING:
    from train.run import Run

# TensorFlow warns about a graph that is built again, as for each call of `predict`.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

OUTPUTS = ("probabilities", "known", "features")  # of the contract; only some models have `known`
BATCH = 8  # photos
GOLDEN_DIGITS = 6  # the last digits of a float32 depend on the processor


class ServingModelError(UserError):
    """A model whose inputs or outputs do not match the contract."""


def serving_model(run: Run) -> keras.Model:
    """The run's model: `image` uint8 [N, H, W, 3] → `probabilities` float32 [N, C], maybe `known` [N, 1], and
    `features` float32 [N, D].

    Raises ServingModelError when the inputs or outputs do not match the contract.
    """
    model = run.load_model()
    subject = f"run {run.path}: the model"
    image = model.inputs[0]
    if len(model.inputs) != 1 or image.name != "image" or image.dtype != "uint8" or image.shape[3] != 3:
        raise ServingModelError(
            f"{subject} takes {image.name} {image.dtype} {image.shape}, not image uint8 [N, H, W, 3]; train "
            "it again"
        )
    outputs = named_outputs(model)
    if list(outputs) not in ([*OUTPUTS], [name for name in OUTPUTS if name != "known"]):
        raise ServingModelError(
            f"{subject} returns {', '.join(outputs)}, not probabilities, known and features; train it again"
        )
    if ("known" in outputs) != ("known" in run.thresholds):
        model_has, run_has = ("has the", "no") if "known" in outputs else ("has no", "a")
        raise ServingModelError(
            f"{subject} {model_has} output known, but run.json has {run_has} threshold for it; train it again"
        )
    probabilities = outputs["probabilities"]
    if probabilities.dtype != "float32" or probabilities.shape[-1] != len(run.classes):
        raise ServingModelError(
            f"{subject} returns probabilities {probabilities.dtype} {probabilities.shape} for "
            f"{len(run.classes)} classes; train it again"
        )
    return model


def golden_answer(model: keras.Model) -> GoldenAnswer:
    """The model's outputs for the golden picture, rounded to GOLDEN_DIGITS.

    Raises ServingModelError when one is not a finite number.
    """
    _, height, width, _ = model.inputs[0].shape
    outputs = predict(model, golden_picture(height, width)[np.newaxis], lambda done: None)
    if not all(np.isfinite(output).all() for output in outputs.values()):
        raise ServingModelError(
            "the trained model computes a number that is not finite: its weights are damaged; train it again"
        )
    probabilities = tuple(round(float(value), GOLDEN_DIGITS) for value in outputs["probabilities"][0])
    known = round(float(outputs["known"][0, 0]), GOLDEN_DIGITS) if "known" in outputs else None
    return GoldenAnswer(probabilities, known)


def named_outputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The model's outputs by name."""
    return dict(zip(model.output_names, model.outputs, strict=True))


def save_serving_model(model: keras.Model, folder: Path, batch: int | None) -> None:
    """Writes a SavedModel with the signature `serving_default`: image → outputs by name.

    A batch of None accepts any batch size.
    """
    names = model.output_names

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, keras.tree.flatten(model(image, training=False)), strict=True))

    # tf.saved_model.save does not track a Keras 3 model's variables: a file converted from it has no weights.
    archive = keras.export.ExportArchive()
    archive.track(model)
    image = tf.TensorSpec([batch, *model.inputs[0].shape[1:]], tf.uint8, name="image")
    archive.add_endpoint("serving_default", serve, input_signature=[image])
    archive.write_out(str(folder), verbose=False)


def predict(
    model: keras.Model, photos: NDArray[np.uint8], step: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    """The model's outputs by name, float32 [n, ...], for photos uint8 [n, H, W, 3], computed on the CPU.

    Calls `step` with the number of photos of each batch.
    """
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in model.output_names}

    # A graph, because TensorFlow then computes a convolution, its bias and its ReLU in one pass.
    run = tf.function(lambda batch: keras.tree.flatten(model(batch, training=False)), reduce_retracing=True)
    with tf.device("/CPU:0"):
        for start in range(0, len(photos), BATCH):
            outputs = run(tf.constant(photos[start : start + BATCH]))
            for name, output in zip(model.output_names, outputs, strict=True):
                found[name].append(np.asarray(output, np.float32))
            step(len(outputs[0]))
    return {name: np.concatenate(parts) for name, parts in found.items()}
