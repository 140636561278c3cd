"""The teacher: the model of the run to compress, whose outputs the compressed network learns.

The teacher may be compressed itself: a large reduction is better in two steps (Mirzadeh et al., "Improved
Knowledge Distillation via Teacher Assistant", 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import UserError
from train.compress.allocation import NetworkShape, max_reduction, too_large_reduction
from train.compress.config import CompressSettings
from train.data.dataset import Photo
from train.finetune import last_frozen_layer
from train.network.vgg import CONVOLUTIONS, Weights, sha256_of, tensors_of
from train.run import Run

SIZES = (224, 192, 160, 128)  # pixels a side that the pipeline chooses from without --size


@dataclass(frozen=True)
class Teacher:
    """The run's model, its convolutions and shape, and the photos that layers are solved on."""

    model: keras.Model
    of_macs: int  # of the uncompressed network, which is the teacher itself unless the run is compressed
    # The classes that the uncompressed network predicts, by split; None if the teacher is that network.
    uncompressed: Mapping[str, NDArray[np.intp]] | None
    last_frozen: str  # the pooling layer whose stored features the teacher's outputs are computed from
    tensors: Mapping[str, NDArray[np.float32]]
    shape: NetworkShape
    sample: tuple[Photo, ...]

    @property
    def reduction(self) -> float:
        """How many times fewer multiplications than the uncompressed network it has."""
        return self.of_macs / self.shape.macs

    def remaining(self, reduction: float) -> float:
        """Its multiplications over those of a network with this reduction of the uncompressed network."""
        return max(1.0, reduction / self.reduction)


def load_teacher(run: Run, settings: CompressSettings) -> Teacher:
    """Load the run's model. Raises UserError for a size or a reduction that is not possible."""
    model = run.load_model()
    tensors = tensors_of(model.layers)
    shape = NetworkShape(model.input_shape[1], {name: len(tensors[f"{name}/bias"]) for name in CONVOLUTIONS})
    if settings.size and settings.size > shape.size:
        raise UserError(
            f"--size {settings.size}: the run has {shape.size} pixels a side; give {shape.size} or less"
        )
    train = run.dataset.split("train")
    order = np.random.default_rng(settings.seed).permutation(len(train))
    sample = tuple(train[index] for index in order[: settings.reconstruction_photos])
    fine_tuned = "none" if run.compressed else str(run.settings.get("fine_tune", "none"))
    of_macs = run.compressed.get("of_macs", shape.macs)
    uncompressed = run.uncompressed_classes()
    teacher = Teacher(model, of_macs, uncompressed, last_frozen_layer(fine_tuned), tensors, shape, sample)
    check_reduction(run, teacher, settings)
    return teacher


def check_reduction(run: Run, teacher: Teacher, settings: CompressSettings) -> None:
    """Raises UserError when no shape has the reduction of the settings, or the run has it already."""
    if settings.target_ms is not None:
        return
    if settings.max_mb is None and settings.reduce <= teacher.reduction:
        raise UserError(
            f"--reduce {settings.reduce:g}: run {run.path} already needs {teacher.reduction:.1f} times fewer "
            f"multiplications than the uncompressed network; give at least {ceil(teacher.reduction) + 1}"
        )
    smallest = min(candidate_sizes(teacher.shape, settings))
    if teacher.remaining(settings.reduce) > max_reduction(teacher.shape, smallest):
        raise UserError(too_large_reduction(teacher.shape, smallest, teacher.reduction))


def candidate_sizes(original: NetworkShape, settings: CompressSettings) -> tuple[int, ...]:
    """Pixels a side to choose from."""
    if settings.size:
        return (settings.size,)
    return tuple(size for size in SIZES if size <= original.size) or (original.size,)


def frozen_weights(run: Run, teacher: Teacher) -> Weights:
    """The run's weights with a hash that names their features: that of the base, which its frozen layers
    share. A compressed run has no frozen layers.
    """
    sha256 = sha256_of(teacher.tensors) if run.compressed else run.base_sha256
    return Weights(teacher.tensors, sha256, "", (teacher.shape.size, teacher.shape.size))
