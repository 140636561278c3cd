"""The figures of one model file in one engine, compared with the trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class FileKey(NamedTuple):
    """A model file of an export, such as ("tflite", "int8")."""

    format: str
    precision: str


@dataclass(frozen=True)
class ParityResult:
    """One file in one engine against the float32 Keras model, on the same n photos.

    |Δp| of a photo is the largest difference over all its class probabilities.
    """

    format: str
    precision: str
    engine: str  # name and version
    n: int
    bytes: int
    top1: float  # accuracy of the file, a share of n
    reference_top1: float  # accuracy of the float32 Keras model
    disagreements: int  # photos whose top-1 differs from the float32 Keras model's
    mean_dp: float
    p99_dp: float
    max_dp: float
    ms: float  # median of one photo on all cores
    error: str = ""  # why there are no figures, or why they cannot be trusted
    known_disagreements: int | None = None  # photos with another unknown decision; None: no output `known`
    max_dknown: float | None = None  # largest |Δ| of `known`
    max_dfeatures: float | None = None  # see `features_error`; None: the reference has no features
    refusal: str = ""  # why a device would refuse the file, for its answer to the golden picture
    uncompressed_disagreements: int | None = None  # photos whose top-1 differs from the uncompressed model's

    @property
    def file(self) -> FileKey:
        return FileKey(self.format, self.precision)

    @property
    def agreement(self) -> float:
        """The share of photos with the top-1 of the float32 Keras model."""
        return 1 - self.disagreements / self.n

    @property
    def known_agreement(self) -> float | None:
        """The share of photos with the unknown decision of the float32 Keras model."""
        return None if self.known_disagreements is None else 1 - self.known_disagreements / self.n

    @property
    def uncompressed_agreement(self) -> float | None:
        """The share of photos with the top-1 of the uncompressed model; None if the run is uncompressed."""
        if self.uncompressed_disagreements is None:
            return None
        return 1 - self.uncompressed_disagreements / self.n
