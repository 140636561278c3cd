"""The contents of a model folder: model files, index, parity table and model card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from export.contract import check_index, file_name
from export.model_card import model_card
from export.output_dir import CARD_NAME, PARITY_NAME
from export.parity.result import FileKey, ParityResult
from export.parity.table import parity_csv
from export.targets.stage import targets_files
from export.targets.target import CompiledTarget
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME
from runtime.model_file.index import Index, IndexedFile
from train.run import Run

# The fields of a ParityResult that model.json records for each engine.
_PARITY_METRICS = (
    "n",
    "top1",
    "agreement",
    "known_agreement",
    "uncompressed_agreement",
    "mean_dp",
    "p99_dp",
    "max_dp",
    "max_dfeatures",
    "ms",
)


@dataclass(frozen=True)
class ExportedFile:
    """A converted file with its contract embedded."""

    model: str  # name of the model folder
    key: FileKey
    data: bytes
    recipe: str = ""  # how an int8 file was quantized

    @property
    def name(self) -> str:
        return file_name(self.model, self.key)

    @cached_property
    def macs(self) -> int:
        from export.macs import count_macs  # loads onnx

        return count_macs(self.data, self.key.format)

    def is_kept(self, keep: Sequence[str] | None) -> bool:
        """Whether --keep lists this file, as PRECISION.FORMAT. None keeps every file."""
        return keep is None or f"{self.key.precision}.{self.key.format}" in keep


def model_folder(
    contract: Contract,
    run: Run,
    files: Sequence[ExportedFile],
    results: Sequence[ParityResult],
    float16: str,
    targets: Sequence[CompiledTarget] = (),
) -> dict[str, bytes]:
    """The bytes of every file in the folder, by name. `float16` sums up the comparison in float16 arithmetic.

    Raises UserError when the index is too large.
    """
    index = Index(contract, tuple(_indexed(file, results) for file in files))
    check_index(index, run.path)
    card = model_card(index, run, results, {file.name: file.recipe for file in files}, float16, targets)
    return {
        **{file.name: file.data for file in files},
        INDEX_NAME: index.to_json().encode(),
        PARITY_NAME: parity_csv(results).encode(),
        CARD_NAME: card.encode(),
        **targets_files(targets),
    }


def _indexed(file: ExportedFile, results: Sequence[ParityResult]) -> IndexedFile:
    format, precision = file.key
    return IndexedFile(
        file=file.name,
        format=format,
        precision=precision,
        bytes=len(file.data),
        sha256=hashlib.sha256(file.data).hexdigest(),
        metrics={
            "macs": file.macs,
            **_metrics(file.recipe, [result for result in results if result.file == file.key]),
        },
    )


def _metrics(recipe: str, results: Sequence[ParityResult]) -> dict[str, Any]:
    """The metrics of a file in model.json: the figures per engine, and the int8 recipe."""
    figures = {
        result.engine: {
            name: value for name in _PARITY_METRICS if (value := getattr(result, name)) is not None
        }
        for result in results
        if not result.error
    }
    return {"parity": figures} | ({"recipe": recipe} if recipe else {})
