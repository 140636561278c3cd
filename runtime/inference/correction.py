"""The correction of a model for one scene: a small file that `python -m runtime.adapt` writes next to it.

known' = sigmoid(logit(known) + min(features · weights + bias, 0)): a correction only ever rejects more.
Without the minimum, a correction for one scene let the model name twice as many pictures of other scenes.
The model file itself never changes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from runtime.common.atomic import atomic_write, reported_writes
from runtime.common.errors import ModelError, UserError
from runtime.common.text import pluralize
from runtime.model_file.contract import MAX_FEATURES, Contract, parse_json, parse_origin, require_field
from runtime.model_file.files import MAX_JSON_BYTES, is_file, read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.model_file.loader import ModelFile

VERSION = 1
CORRECTION_FLAG = "--correction FILE"
NONE = "none"  # `--correction none`: answer without a correction
SUFFIX = ".correction.json"
FOLDER_VARIABLE = "VGG_EDGE_CORRECTIONS"  # names a folder for the corrections of all models
# float32 cannot hold a probability closer to 1: beyond it, `known` tells nothing.
SMALLEST_KNOWN = 1e-7
ROUNDING_ERROR = 1e-6  # of a logit: a bias that lifts a logit to exactly 0 may leave it below
MAX_WEIGHT = 1e6
_SHARES = ("named_before", "named_after", "rejected_before", "rejected_after")


@dataclass(frozen=True, eq=False)
class Correction:
    """What `adapt` fitted, and how much it changes. Shares (0 to 1) are of photos that no fit has seen."""

    model_id: str  # of the contract
    created: str  # ISO 8601, UTC
    photos: int  # of none of the classes, that it was fitted on
    named_before: float  # the share of such photos that get the name of a class
    named_after: float
    rejected_before: float  # the share of photos of the classes that are rejected as unknown
    rejected_after: float
    bias: float
    weights: NDArray[np.float32]  # [D]

    def __str__(self) -> str:
        return (
            f"corrected on {self.created[:10]} with {pluralize(self.photos, 'photo')} of a scene: "
            f"named {self.named_after:.1%} of such photos (was {self.named_before:.1%}), "
            f"rejected {self.rejected_after:.1%} of photos of the classes (was {self.rejected_before:.1%})"
        )

    def apply(self, known: NDArray[Any], features: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the corrected `known` [N], for the model's `known` [N] and `features` [N, D]."""
        change = features.astype(np.float64) @ self.weights.astype(np.float64) + self.bias
        return sigmoid(logit(known) + np.minimum(change, 0))

    def to_json(self) -> str:
        fields = {"version": VERSION, **vars(self), "weights": [float(weight) for weight in self.weights]}
        return json.dumps(fields)


def logit(known: NDArray[Any]) -> NDArray[np.float64]:
    """Returns log(known / (1 - known)), float64. A `known` that float32 rounded to 0 or 1 stays finite."""
    clipped = np.clip(np.asarray(known, np.float64), SMALLEST_KNOWN, 1 - SMALLEST_KNOWN)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), np.float64)


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Returns 1 / (1 + exp(-logits)), float64, the inverse of `logit`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -50, 50))), np.float64)


def bias_to_add(logits: NDArray[np.float64], change: NDArray[np.float64], share: float) -> float:
    """Returns the smallest bias, 0 or more, that keeps enough of the changed logits [N] at 0 or above.

    At most `share` of all may be below 0 in addition to the logits that are below it without the change.
    """
    changed = np.sort((logits + change)[logits >= 0])
    allowed = int(share * len(logits))
    if allowed >= len(changed) or changed[allowed] >= 0:
        return 0.0
    return ROUNDING_ERROR - float(changed[allowed])


def correction_path(model: ModelFile, named: str | Path | None) -> Path:
    """Returns where the model's correction is: the named file, else next to the model.

    A folder's files share one, FOLDER.correction.json, because they compute the same features; a file without
    a folder's index has FILE.correction.json. VGG_EDGE_CORRECTIONS names a folder for these files, where the
    folder of models may not be written.
    """
    return Path(named) if named is not None else path_beside(model, SUFFIX, FOLDER_VARIABLE)


def path_beside(model: ModelFile, suffix: str, variable: str) -> Path:
    """Returns the path next to the model's folder, or file, with this suffix.

    The environment `variable` names another folder for it.
    """
    place = model.folder or model.path
    if place.name in ("", ".."):  # such as --model .
        place = place.resolve()
    if place.name and (folder := os.environ.get(variable)):
        place = Path(folder, place.name)
    return place.with_name(place.name + suffix) if place.name else place / suffix


@dataclass(frozen=True)
class OpenedCorrection:
    """What was found at the place of a model's correction."""

    path: Path | None  # where the correction is or would be; None with `--correction none`
    correction: Correction | None
    problem: str = ""  # why a file that is there is not used; empty if it is used or does not exist


def open_correction(
    model: ModelFile, named: str | Path | None = None, *, allowed: bool = False
) -> OpenedCorrection:
    """Returns the correction next to the model, or the named one ("none": no correction), if there is any.

    A model that had to be signed is not corrected unless that is `allowed`, because nobody signed the
    correction. A correction that was not named and cannot be used is a `problem`. Raises ModelError when it
    was named.
    """
    if named == NONE:
        return OpenedCorrection(None, None)
    path = correction_path(model, named)
    try:
        if not is_file(path):
            # Not an error where it was named: a service may start before its scene is known.
            problem = f"{path}: no such correction yet: `python -m runtime.adapt` writes it" if named else ""
            return OpenedCorrection(path, None, problem)
        if model.signature and not allowed:
            raise ModelError(
                f"{path}: the correction is not signed, and this device accepts signed models only: "
                "--allow-correction uses it"
            )
        return OpenedCorrection(path, read_correction(path, model.contract))
    except ModelError as error:
        if named:
            raise
        return OpenedCorrection(path, None, f"{error}; the model answers without it")


def write_correction(path: Path, correction: Correction) -> None:
    """Writes the file in one step. Raises WriteError."""
    with reported_writes(path, CORRECTION_FLAG), atomic_write(path) as file:
        file.write(correction.to_json().encode())


def check_replaceable(path: Path, named: str | Path | None) -> None:
    """Raises UserError when a file that was named exists and is no correction, of this model or of another.

    The file next to the model is the project's own, and may be damaged.
    """
    if named is None or not os.path.lexists(path):
        return
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        parse_correction(data)
    except ModelError:
        raise UserError(
            f"{path}: is not a correction, so it is neither replaced nor removed: name another file with "
            "--correction, or remove it yourself"
        ) from None


def read_correction(path: Path, contract: Contract) -> Correction:
    """Reads and checks a correction for the model with this contract. Raises ModelError."""
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        correction = parse_correction(data)
    except ModelError as error:
        raise ModelError(f"{path}: the correction {error}: adapt again") from None
    if correction.model_id != contract.model_id or len(correction.weights) != contract.features:
        raise ModelError(f"{path}: the correction is for another model: run `python -m runtime.adapt` again")
    return correction


def parse_correction(data: bytes) -> Correction:
    """Parses and checks every field, and ignores unknown fields. Raises ModelError."""
    fields = parse_json(data)
    if (version := require_field(fields, "version", int)) != VERSION:
        raise ModelError(f"has version {str(version)[:12]}, this runtime reads version {VERSION}")
    model_id, created = parse_origin(fields)
    if not 1 <= (photos := require_field(fields, "photos", int)) <= 10**9:
        raise ModelError("has no number of photos")
    weights = require_field(fields, "weights", list)
    if not 1 <= len(weights) <= MAX_FEATURES or not all(_is_number(weight, MAX_WEIGHT) for weight in weights):
        raise ModelError(f"has weights that are not 1 to {MAX_FEATURES:,} finite numbers")
    return Correction(
        model_id,
        created,
        photos,
        **{name: _parse_number(fields, name, 0, 1) for name in _SHARES},
        bias=_parse_number(fields, "bias", -MAX_WEIGHT, MAX_WEIGHT),
        weights=np.array(weights, np.float32),
    )


def _parse_number(fields: dict[str, Any], name: str, smallest: float, largest: float) -> float:
    value = fields.get(name)
    if not _is_number(value, max(abs(smallest), largest)) or value < smallest:
        raise ModelError(f"has a field {name!r} that is not a number from {smallest:g} to {largest:g}")
    return float(value)


def _is_number(value: Any, largest: float) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) <= largest  # NaN fails this comparison
