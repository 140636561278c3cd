"""The input of a target, and its result: compiled files, the report of the compiler, and the parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.parity.gates import FAILED, broken_bounds, verdict
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference
from runtime.model_file.contract import Contract

Step = Callable[[], None]  # called after each photo


@dataclass(frozen=True)
class TargetInput:
    """An exported file with its contract inside, and the photos that the compiled file is compared on."""

    name: str  # of the target
    file: FileKey
    data: bytes
    contract: Contract
    reference: ParityReference  # on test photos
    results: Sequence[ParityResult]  # of the exported files in the engines of this computer
    photos: Callable[[str, int], NDArray[np.uint8]]  # decodes n photos of a split, [n, H, W, 3]
    python: Path  # of the environment of a compiler that does not fit into this one

    def file_name(self, suffix: str) -> str:
        """The name of a compiled file, such as flowers_ethos-u55.tflite."""
        return f"{self.contract.name}_{self.name}{suffix}"


@dataclass(frozen=True)
class CompiledTarget:
    """The compiled files of a target, the report of the compiler, and the parity."""

    target: str
    compiler: str  # name and version
    files: Mapping[str, bytes]  # by name; the first is the model
    report: Mapping[str, str]  # the compiler's figures
    parity: ParityResult
    compared_in: str  # where the parity was measured
    broken: tuple[str, ...] = ()  # bounds of the report that the file breaks

    @property
    def main_file(self) -> str:
        return next(iter(self.files))

    @property
    def verdict(self) -> str:
        return FAILED if self.failures else verdict(self.parity)

    @property
    def failures(self) -> list[str]:
        """The broken bounds of the report and of the parity."""
        return [*self.broken, *broken_bounds(self.parity)]

    @property
    def next_step(self) -> str:
        """The advice for a target that fails."""
        if self.broken:
            return f"report it with {self.compiler}"
        return f"if the exported files pass in the table above, report it with {self.compiler}"


@dataclass(frozen=True)
class Target:
    """A board or a compiler that an exported file is built for."""

    file: FileKey  # the exported file that it needs
    photos: int | None  # test photos that the compiled file runs on at most; None: it cannot run here
    check: Callable[[Path], None]  # raises UserError with the install command when the compiler is missing
    build: Callable[[TargetInput, Step], CompiledTarget]


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"
