"""What a device learned for one model: more classes, corrected answers, and photos to reject.

The state of the folder models/NAME is in models/NAME.learned: state.json, previous.json for undo, and the
kept photos. The model file itself never changes.

With the model's probabilities p [C], `known` and features f [D], the logits of the first C classes are
log p + f · weights + bias, and those of the new classes f · weights + bias + nearness x lead. The lead of a
group of photos is the distance to the nearest class of the model minus the distance to the group's mean.
Distances are squared Mahalanobis distances with the model's covariance within a class. The photos of a new
class are a group, and the detector has others: the photos of a class of the model that were unknown. If the
best class has a group, the logit of `known` rises by sensitivity x lead, provided that this is positive and
the distance to the mean is within the group's limit. Finally, min(f · reject_weights + reject_bias, 0) is
added to that logit.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.atomic import atomic_write, reported_writes
from runtime.common.errors import ModelError
from runtime.common.text import is_name
from runtime.inference.correction import NONE, logit, path_beside, sigmoid
from runtime.model_file.contract import (
    MAX_FEATURES,
    MAX_LABELS,
    Contract,
    parse_json,
    parse_origin,
    require_field,
)
from runtime.model_file.files import is_file, read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.model_file.loader import ModelFile

VERSION = 1
LEARNED_FLAG = "--learned FOLDER"
SUFFIX = ".learned"
FOLDER_VARIABLE = "VGG_EDGE_LEARNED"  # names a folder for the learned states of all models
STATE_NAME, PREVIOUS_NAME = "state.json", "previous.json"
_NO_STATE = b"null\n"  # previous.json when nothing was learned before
MAX_MB = 200.0  # of all files of a learned state
MAX_STATE_BYTES = 2**26
MAX_COUNT = 10**9
MAX_VALUE = 1e9  # of an array's items
SMALLEST_PROBABILITY = 1e-6  # a photo may need a correction of the answer that the model is most sure of
MAX_AXES = 64
_ID = re.compile(r"[0-9A-Za-z_.]{1,80}", re.ASCII)

# The axes of each array: R changed classes, D features, M means of the model's classes and of the groups, G
# groups, K axes of the covariance.
_ARRAYS = {
    "weights": "RD",
    "bias": "R",
    "means": "MD",
    "offsets": "M",
    "inverse_variances": "D",
    "axes": "KD",
    "shrinkage": "G",
    "limits": "G",
    "sensitivities": "G",
    "reject_weights": "D",
}


@dataclass(frozen=True)
class LabelResult:
    """The photos taught for one label, and how many get the right answer (for `none`: unknown)."""

    photos: int
    right_before: int
    right_after: int
    right_unseen: int  # by fits that did not use the photo (5-fold cross-validation)


@dataclass(frozen=True)
class Measured:
    """How many photos are right before and after learning: named as labelled, for `none` unknown."""

    labels: Mapping[str, LabelResult]  # by the label that was taught, NONE_LABEL included
    examples: int  # photos of the model's classes, whose features are in the model file
    examples_right_before: int
    examples_right_after: int  # by fits that did not use the photo


@dataclass(frozen=True, eq=False)
class LearnedState:
    """The changes to a model's answers that were fitted to the photos that a device was taught."""

    model_id: str  # of the contract
    created: str  # ISO 8601, UTC
    labels: tuple[str, ...]  # the C classes of the model, then the N new ones
    classes: int  # C
    rows: tuple[int, ...]  # [R], the positions of the classes whose logits change
    weights: NDArray[np.float32]  # [R, D]
    bias: NDArray[np.float32]  # [R]
    groups: tuple[int, ...]  # [G], the position of the class of each group of photos
    # For the distances: the means of the C classes and of the groups times the inverse covariance, their
    # squared lengths, and the inverse covariance, diag(inverse_variances) - axesᵀ axes.
    means: NDArray[np.float32]  # [C + G, D]
    offsets: NDArray[np.float32]  # [C + G]
    inverse_variances: NDArray[np.float32]  # [D]
    axes: NDArray[np.float32]  # [K, D]
    shrinkage: NDArray[np.float32]  # [G], of the distance to a mean of few photos
    limits: NDArray[np.float32]  # [G]
    sensitivities: NDArray[np.float32]  # [G], 0 or more
    nearness: float  # of the lead in the logit of a new class, 0 or more
    reject_weights: NDArray[np.float32]  # [D]; zeros without photos of none of the classes
    reject_bias: float
    photos: Mapping[str, str]  # the label of each photo that was learned, by its id
    measured: Measured
    threshold: float | None = None  # of `known` that the photos were fitted to; None if the file has none

    def __str__(self) -> str:
        return f"learned on {self.created[:10]}: {describe_learning(self)}"

    @property
    def new_labels(self) -> tuple[str, ...]:
        return self.labels[self.classes :]

    def apply(
        self, probabilities: NDArray[Any], known: NDArray[Any] | None, features: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
        """Returns the probabilities [..., C + N] and `known` [...] after learning.

        For the model's probabilities [..., C], known [...] (None if it has none) and features [..., D].
        """
        f = features.astype(np.float64)
        logits = np.zeros((*f.shape[:-1], len(self.labels)))
        logits[..., : self.classes] = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
        logits[..., list(self.rows)] += f @ self.weights.T + self.bias
        lead, own = self._distances(f)
        new = [at for at, position in enumerate(self.groups) if position >= self.classes]
        logits[..., [self.groups[at] for at in new]] += self.nearness * lead[..., new]
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        after = np.asarray(exponentials / exponentials.sum(-1, keepdims=True), np.float32)
        if known is None:
            return after, None
        applies = (logits.argmax(-1)[..., np.newaxis] == np.array(self.groups)) & (own <= self.limits)
        gains = np.where(applies, self.sensitivities * np.maximum(lead, 0), 0.0)
        changed = logit(known) + gains.max(-1, initial=0.0)
        changed = changed + np.minimum(f @ self.reject_weights + self.reject_bias, 0)
        return after, sigmoid(changed)

    def _distances(self, f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the lead [..., G] and the distance to the mean [..., G] of each group."""
        if not self.groups:
            return np.zeros((*f.shape[:-1], 0)), np.zeros((*f.shape[:-1], 0))
        lengths = f**2 @ self.inverse_variances - ((f @ self.axes.T) ** 2).sum(-1)
        distances = lengths[..., np.newaxis] - 2 * f @ self.means.T + self.offsets
        own = distances[..., self.classes :] * self.shrinkage
        return distances[..., : self.classes].min(-1, keepdims=True) - own, own

    def to_bytes(self) -> bytes:
        """Returns the state as JSON. Raises ModelError when `from_bytes` would refuse it."""
        data = self.to_json()
        self.from_bytes(data)
        return data

    def to_json(self) -> bytes:
        """Returns the state as JSON, unchecked: that of a file may be a little longer than the file."""
        measured = self.measured
        fields = {
            "version": VERSION,
            "model_id": self.model_id,
            "created": self.created,
            "labels": self.labels,
            "classes": self.classes,
            "rows": self.rows,
            "groups": self.groups,
            "nearness": self.nearness,
            "reject_bias": self.reject_bias,
            **({} if self.threshold is None else {"threshold": self.threshold}),
            "measured": {
                **vars(measured),
                "labels": {label: vars(result) for label, result in measured.labels.items()},
            },
            "photos": dict(self.photos),
            "arrays": {name: _encode(getattr(self, name)) for name in _ARRAYS},
        }
        return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")

    @classmethod
    def from_bytes(cls, data: bytes) -> LearnedState:
        """Parses and checks a state from any source. Raises ModelError."""
        fields = parse_json(data, MAX_STATE_BYTES)
        if (version := require_field(fields, "version", int)) != VERSION:
            next_step = ": upgrade vgg-edge" if version > VERSION else ""
            raise ModelError(
                f"has version {str(version)[:12]}, this runtime reads version {VERSION}{next_step}"
            )
        model_id, created = parse_origin(fields)
        labels = _parse_labels(require_field(fields, "labels", list))
        classes = _parse_count(fields, "classes")
        rows, groups = (_parse_positions(fields, name, len(labels)) for name in ("rows", "groups"))
        sizes = {"M": classes + len(groups), "G": len(groups), "R": len(rows)}
        if not 2 <= classes <= len(labels):
            raise ModelError("has no number of classes of its model")
        encoded = require_field(fields, "arrays", dict)
        return cls(
            model_id=model_id,
            created=created,
            labels=labels,
            classes=classes,
            rows=rows,
            groups=groups,
            nearness=_parse_number(fields, "nearness", smallest=0.0),
            reject_bias=_parse_number(fields, "reject_bias"),
            photos=_parse_photos(require_field(fields, "photos", dict)),
            measured=_parse_measured(require_field(fields, "measured", dict)),
            threshold=_parse_number(fields, "threshold", 0.0) if "threshold" in fields else None,
            **{name: _decode(encoded, name, axes, sizes) for name, axes in _ARRAYS.items()},
        )

    def check(self, contract: Contract) -> None:
        """Raises ModelError when this is not the state of a model with this contract."""
        is_same = self.model_id == contract.model_id and self.labels[: self.classes] == contract.labels
        if not is_same or self.weights.shape[1] != contract.features:
            raise ModelError("is for another model: run `python -m runtime.teach --again`")


def learned_folder(model: ModelFile, named: str | Path | None = None) -> Path:
    """Returns where the model's learned state is: the named folder, else next to the model.

    FOLDER.learned for a folder of models, whose files compute the same features, else FILE.learned.
    VGG_EDGE_LEARNED names a folder for these folders, where the folder of models may not be written.
    """
    return Path(named) if named is not None else path_beside(model, SUFFIX, FOLDER_VARIABLE)


@dataclass(frozen=True)
class OpenedLearned:
    """What was found at the place of a model's learned state."""

    folder: Path | None  # where the state is or would be; None with `--learned none`
    state: LearnedState | None
    problem: str = ""  # why a state that is there, or was named, is not used; empty if none is expected


def open_learned(
    model: ModelFile, named: str | Path | None = None, *, allowed: bool = False
) -> OpenedLearned:
    """Returns the learned state next to the model, or in the named folder ("none": no state), if any.

    A model that had to be signed answers without it unless that is `allowed`, because nobody signed the
    state. A state that cannot be used is a `problem`, and so is a named folder without one: the model answers
    without it. Raises ModelError for a named file.
    """
    if named == NONE:
        return OpenedLearned(None, None)
    folder = learned_folder(model, named)
    try:
        state = read_state(folder, model.contract)
        if state and model.signature and not allowed:
            raise ModelError(
                f"{folder}: the learned state is not signed, and this device accepts signed models only: "
                "--allow-learning uses it"
            )
    except ModelError as error:
        return OpenedLearned(folder, None, f"{error}; the model answers without it")
    if state or named is None:
        return OpenedLearned(folder, state)
    if is_file(folder):
        raise ModelError(
            f"{folder}: is a file: --learned takes the folder that `python -m runtime.teach` wrote"
        )
    # Not an error: a service may start before it is taught.
    problem = f"{folder}: no learned state here yet: `python -m runtime.teach` writes it"
    return OpenedLearned(folder, None, problem)


def read_state(folder: Path, contract: Contract | None = None) -> LearnedState | None:
    """Returns the state; None without one. Raises ModelError, also if it is not of a given contract."""
    path = folder / STATE_NAME
    if not is_file(path):
        return None
    data = read_bytes(path, MAX_STATE_BYTES)
    try:
        state = LearnedState.from_bytes(data)
        if contract:
            state.check(contract)
    except ModelError as error:
        raise ModelError(f"{path}: the learned state {error}") from None
    return state


def write_state(folder: Path, state: LearnedState) -> None:
    """Writes the state in one step, and keeps the one before it for `read_previous`.

    Raises ModelError for a state that could not be read again, and WriteError.
    """
    path, data = folder / STATE_NAME, state.to_bytes()
    with reported_writes(path, LEARNED_FLAG):
        folder.mkdir(parents=True, exist_ok=True)
        before = read_bytes(path, MAX_STATE_BYTES) if is_file(path) else _NO_STATE
        _write(folder / PREVIOUS_NAME, before)
        _write(path, data)


def read_previous(folder: Path) -> LearnedState | None:
    """Returns the state before the last one; None if nothing was learned before.

    Raises ModelError, also if the last one was learned again for a new model.
    """
    path = folder / PREVIOUS_NAME
    if not is_file(path):
        raise ModelError(f"{folder}: nothing to undo: only the last step can be undone, once")
    data = read_bytes(path, MAX_STATE_BYTES)
    try:
        before = None if data == _NO_STATE else LearnedState.from_bytes(data)
    except ModelError as error:
        raise ModelError(f"{path}: the learned state {error}") from None
    now = None
    with suppress(ModelError):  # a damaged state can be undone
        now = read_state(folder)
    if before and now and before.model_id != now.model_id:
        raise ModelError(f"{folder}: nothing to undo: the step before was learned for another model")
    return before


def restore_state(folder: Path, state: LearnedState | None) -> None:
    """Makes the state of `read_previous` the current one. Raises ModelError and WriteError."""
    path = folder / STATE_NAME
    with reported_writes(path, LEARNED_FLAG):
        if state is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, state.to_bytes())
        (folder / PREVIOUS_NAME).unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def describe_learning(state: LearnedState) -> str:
    """Returns one line such as "roses 3, new class peony (9); known photos still right: 98 % (was 99 %)"."""
    parts = []
    for label, result in state.measured.labels.items():
        is_new = label in state.new_labels
        parts.append(f"new class {label} ({result.photos})" if is_new else f"{label} {result.photos}")
    measured = state.measured
    before, after = (
        f"{count / measured.examples:.1%}"
        for count in (measured.examples_right_before, measured.examples_right_after)
    )
    return f"{', '.join(parts)}; known photos still right: {after} (was {before})"


def _encode(array: NDArray[Any]) -> dict[str, Any]:
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode()}


def _decode(arrays: dict[str, Any], name: str, axes: str, sizes: dict[str, int]) -> NDArray[np.float32]:
    """Returns one array, and notes the sizes of axes D and K in `sizes`."""
    entry = arrays.get(name)
    if not isinstance(entry, dict) or not isinstance(text := entry.get("float32"), str):
        raise ModelError(f"has no array {name!r}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) != len(axes) or not all(type(side) is int for side in shape):
        raise ModelError(f"has an array {name!r} of another shape")
    for axis, side in zip(axes, shape, strict=True):
        largest = {"D": MAX_FEATURES, "K": MAX_AXES}.get(axis, MAX_LABELS * 2)
        if not 0 <= side <= largest or sizes.setdefault(axis, side) != side:
            raise ModelError(f"has an array {name!r} of another shape")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ModelError(f"has an array {name!r} that is not base64") from None
    if len(data) != 4 * int(np.prod(shape, dtype=np.int64)):
        raise ModelError(f"has an array {name!r} of another length")
    array = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    if not (np.abs(array) <= MAX_VALUE).all():  # NaN fails this comparison
        raise ModelError(f"has an array {name!r} with values that are not finite")
    return array


def _parse_labels(labels: list[Any]) -> tuple[str, ...]:
    if not 2 <= len(labels) <= 2 * MAX_LABELS or not all(isinstance(label, str) for label in labels):
        raise ModelError("has no list of labels")
    if not all(map(is_name, labels)) or len(set(labels)) != len(labels):
        raise ModelError("has labels that are not different names of printable characters")
    return tuple(labels)


def _parse_positions(fields: dict[str, Any], name: str, count: int) -> tuple[int, ...]:
    positions = require_field(fields, name, list)
    if not all(type(at) is int and 0 <= at < count for at in positions):
        raise ModelError(f"has {name} that are not positions of its labels")
    if len(set(positions)) < len(positions):
        raise ModelError(f"has {name} that are not different")
    return tuple(positions)


def _parse_photos(photos: dict[str, Any]) -> dict[str, str]:
    if not all(
        _ID.fullmatch(id) and isinstance(label, str) and is_name(label) for id, label in photos.items()
    ):
        raise ModelError("has a photo without an id or a label")
    return photos


def _parse_measured(fields: dict[str, Any]) -> Measured:
    counts = ("examples", "examples_right_before", "examples_right_after")
    numbers = {name: _parse_count(fields, name) for name in counts}
    if not numbers["examples"] >= max(1, *list(numbers.values())[1:]):
        raise ModelError("has more right examples than examples")
    labels = {}
    for label, result in require_field(fields, "labels", dict).items():
        if not is_name(label) or not isinstance(result, dict):
            raise ModelError("has results without a label")
        names = ("photos", "right_before", "right_after", "right_unseen")
        labels[label] = LabelResult(**{name: _parse_count(result, name) for name in names})
    return Measured(labels, **numbers)


def _parse_count(fields: dict[str, Any], name: str) -> int:
    count = require_field(fields, name, int)
    if not 0 <= count <= MAX_COUNT:
        raise ModelError(f"has a field {name!r} that is not a count")
    return int(count)


def _parse_number(fields: dict[str, Any], name: str, smallest: float = -MAX_VALUE) -> float:
    value: Any = fields.get(name)
    if type(value) not in (int, float) or not smallest <= value <= MAX_VALUE:
        raise ModelError(f"has a field {name!r} that is not a number from {smallest:g} to {MAX_VALUE:g}")
    return float(value)
