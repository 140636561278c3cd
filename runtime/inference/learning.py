"""Learns the photos that a device keeps: their features, the fit, and the state that is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.atomic import atomic_write, reported_writes
from runtime.common.errors import ModelError, PictureError, UserError
from runtime.common.file_lock import exclusive_lock
from runtime.inference.learned_fit import TaughtOutputs, fit_learned
from runtime.inference.learned_state import (
    LEARNED_FLAG,
    LearnedState,
    read_previous,
    read_state,
    restore_state,
    write_state,
)
from runtime.inference.prefetch import DECODERS
from runtime.inference.taught_photos import (
    FEATURES_SUFFIX,
    TaughtPhoto,
    TaughtPhotos,
    check_label,
    find_label,
)
from runtime.model_file.files import read_bytes
from runtime.preprocess.photo_files import NONE_LABEL
from runtime.preprocess.stored_photo import MAX_PHOTO_BYTES, MAX_SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.inference.correction import Correction
    from runtime.inference.prediction import ModelOutput
    from runtime.model_file.loader import ModelFile
    from runtime.preprocess.picture import Pixels, Source

    Infer = Callable[[Pixels], ModelOutput]  # of Classifier.infer_uncorrected

LOCK_NAME = ".lock"
SIZE = (MAX_SIDE, MAX_SIDE)


@dataclass(frozen=True)
class Learned:
    """The new state, with a line for each warning, and by id the reason why a kept photo was not learned."""

    state: LearnedState
    warnings: tuple[str, ...]
    problems: Mapping[str, str]


def learn(
    model: ModelFile,
    infer: Infer,
    folder: Path,
    correction: Correction | None = None,
    *,
    threshold: float | None = None,
    max_mb: float | None = None,
) -> Learned:
    """Fits the state to all kept photos of a learned state's folder, and writes it.

    For a model that is new to the folder, this learns the photos again. With a `correction` or a `threshold`
    of `known` for --reject, new classes are known in spite of it. Raises UserError without a readable photo,
    or when another program learns, and ModelError.
    """
    check_teachable(model)
    store = TaughtPhotos(folder, max_mb)
    problems: dict[str, str] = {}
    with _locked(folder):
        return _trim(store, _learn(model, infer, store, correction, threshold, problems))


def check_teachable(model: ModelFile, label: str = "") -> None:
    """Raises ModelError unless the model can learn photos of a label.

    The model must return its features and hold their statistics. For NONE_LABEL it must also detect unknown
    pictures.
    """
    if model.contract.features is None:
        raise ModelError(
            f"{model.path}: has contract version {model.contract.version}, which has no features to learn "
            "from: export it again"
        )
    if label == NONE_LABEL and "known" not in model.contract.thresholds:
        raise ModelError(f"{model.path}: does not detect unknown pictures: choose another --model")
    model.read_statistics()


def teach(
    model: ModelFile,
    infer: Infer,
    folder: Path,
    label: str,
    photos: Source | Iterable[Source],
    labels: Sequence[str],
    correction: Correction | None = None,
    *,
    threshold: float | None = None,
    max_mb: float | None = None,
) -> Learned:
    """Keeps photos under a label, and learns as `learn` does.

    `labels` are those of the classifier. If this fails, or is interrupted, no photo is kept. Raises UserError
    for a name that cannot be a label, and what `learn` raises.
    """
    check_teachable(model, label)
    store = TaughtPhotos(folder, max_mb)
    label = check_label(label, [*labels, *store.labels()], model.contract.labels)
    kept: dict[str, str] = {}
    with _locked(folder):
        before = {photo.id: photo.label for photo in store.photos()}
        with reported_writes(folder, LEARNED_FLAG):
            store.start_step()
        try:
            problems = _keep_photos(store, label, photos, kept)
            learned = _learn(model, infer, store, correction, threshold, problems)
        except BaseException:  # Ctrl-C too
            _restore_photos(store, before, kept)
            raise
        return _trim(store, learned)


def _learn(
    model: ModelFile,
    infer: Infer,
    store: TaughtPhotos,
    correction: Correction | None,
    threshold: float | None,
    problems: dict[str, str],
) -> Learned:
    """Fits the state to all photos that stay, and writes it. `problems` gets those that cannot be read."""
    taught = _read_outputs(model, infer, store, problems)
    statistics = model.read_statistics()
    if correction and taught.known is not None:
        known = correction.apply(statistics.positive_known, statistics.positive_features)
        statistics = replace(statistics, positive_known=known.astype(np.float32))
        taught = replace(taught, known=correction.apply(taught.known, taught.features))
    fit = fit_learned(model.contract, statistics, taught, threshold)
    lost = _lost_labels(store.folder.parent, fit.state)
    write_state(store.folder.parent, fit.state)
    return Learned(fit.state, (*fit.warnings, *lost), problems)


def _lost_labels(folder: Path, state: LearnedState) -> list[str]:
    """Returns a line if the state that `state` replaces had learned labels of which no photo is left."""
    before = None
    with suppress(ModelError):  # a damaged state is replaced
        before = read_state(folder)
    labels, left = set(before.photos.values() if before else ()), set(state.photos.values())
    lost = sorted(label for label in labels if find_label(label, left) is None)
    return [f"no photo of {', '.join(lost)} is left, so it is no longer learned"] if lost else []


def _trim(store: TaughtPhotos, learned: Learned) -> Learned:
    """Deletes the oldest photos until the files are within their bound, and adds a warning about them."""
    with reported_writes(store.folder, LEARNED_FLAG):
        store.trim()
    return replace(learned, warnings=(*learned.warnings, *_deleted(store)))


def _keep_photos(
    store: TaughtPhotos, label: str, photos: Source | Iterable[Source], kept: dict[str, str]
) -> dict[str, str]:
    """Stores photos, and returns by source the reason why one cannot be read. `kept` gets labels by id.

    Raises UserError without a readable photo.
    """
    problems: dict[str, str] = {}
    sources: Any = photos
    if isinstance(photos, (str, Path, bytes, np.ndarray)) or hasattr(photos, "read"):
        sources = [photos]
    for at, photo in enumerate(sources):
        name = str(photo) if isinstance(photo, (str, Path)) else f"photo {at + 1}"
        try:
            pixels = photo if isinstance(photo, np.ndarray) else DECODERS.decode(photo, SIZE, fit=True)
        except PictureError as error:
            problems[name] = str(error).removeprefix(f"{name}: ")
            continue
        with reported_writes(store.folder, LEARNED_FLAG):
            kept[store.add(label, pixels, _read_encoded(photo)).id] = label
    if not kept:
        raise nothing_learned(problems)
    return problems


def _read_encoded(photo: Any) -> bytes:
    """Returns the bytes of a file that may be a copy of a kept photo, such as of --export."""
    if isinstance(photo, (str, Path)):
        with suppress(ModelError):  # another photo is larger
            return read_bytes(Path(photo), MAX_PHOTO_BYTES)
    return photo if isinstance(photo, bytes) else b""


def nothing_learned(problems: Mapping[str, str]) -> UserError:
    """The error for photos of which none can be read; `problems` has the reasons by source."""
    reasons = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return UserError(f"{reasons or 'no photos'}: nothing was learned")


def _deleted(store: TaughtPhotos) -> Iterator[str]:
    """Yields a line if photos were deleted to make room."""
    if store.deleted:
        yield f"deleted {len(store.deleted)} of the oldest photos to make room (--max-mb)"


def undo(folder: Path) -> LearnedState | None:
    """Restores the state before the last step, and deletes the photos that were learned in this step.

    Photos that got another label get their label back. Returns the restored state, None if the device had
    learned nothing before. Raises ModelError when there is nothing to undo, and UserError.
    """
    with _locked(folder):
        before = read_previous(folder)
        with suppress(ModelError):  # a damaged state is replaced all the same
            if now := read_state(folder):
                _restore_photos(TaughtPhotos(folder), before.photos if before else {}, now.photos)
        restore_state(folder, before)
    return before


def reset(folder: Path) -> None:
    """Deletes the learned state with all kept photos. Raises UserError."""
    with _locked(folder), reported_writes(folder, LEARNED_FLAG):
        restore_state(folder, None)
        TaughtPhotos(folder).clear()
        TaughtPhotos(folder).clear_features()


def pending_photos(state: LearnedState | None, photos: Iterable[TaughtPhoto]) -> list[TaughtPhoto]:
    """Returns the photos that the state has not learned with their present label."""
    learned = state.photos if state else {}
    return [photo for photo in photos if learned.get(photo.id) != photo.label]


def count_removed(state: LearnedState, photos: Iterable[TaughtPhoto]) -> int:
    """Returns the number of photos that the state has learned, and that are no longer kept."""
    return len(state.photos.keys() - {photo.id for photo in photos})


def _restore_photos(store: TaughtPhotos, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    for id, label in now.items():
        with suppress(KeyError), reported_writes(store.folder, LEARNED_FLAG):
            if id not in before:
                store.remove(id)
            elif before[id] != label:
                store.move(id, before[id])


def _read_outputs(
    model: ModelFile, infer: Infer, store: TaughtPhotos, problems: dict[str, str]
) -> TaughtOutputs:
    """Returns the model's outputs for the photos that stay, computed once for each photo and model file."""
    cache = store.features / model.sha256[:16]
    store.clear_features(kept=cache.name)
    with reported_writes(cache, LEARNED_FLAG):
        cache.mkdir(parents=True, exist_ok=True)
    labels, outputs, ids = [], [], []
    excess = {photo.id for photo in store.excess()}
    for photo in store.photos():
        if photo.id in excess:
            continue
        try:
            outputs.append(_read_output(model, infer, photo, cache / f"{photo.id}{FEATURES_SUFFIX}"))
        except PictureError as error:
            problems[photo.id] = str(error).removeprefix(f"{photo.path}: ")
            continue
        ids.append(photo.id)
        # A model that came after the photo may have its label, in another case.
        label = find_label(photo.label, [NONE_LABEL, *model.contract.labels]) or photo.label
        if label != photo.label:
            with suppress(KeyError), reported_writes(store.folder, LEARNED_FLAG):  # the photo may be gone
                store.move(photo.id, label)
        labels.append(label)
    if not ids:
        reason = "; ".join(f"{id}: {problem}" for id, problem in problems.items()) or "no photos are kept"
        raise UserError(f"{store.folder}: {reason}: teach photos first")
    classes = len(model.contract.labels)
    table = np.array(outputs, np.float64)
    known = table[:, classes] if "known" in model.contract.thresholds else None
    return TaughtOutputs(ids, labels, table[:, :classes], known, table[:, classes + 1 :])


def _read_output(model: ModelFile, infer: Infer, photo: TaughtPhoto, path: Path) -> NDArray[np.float32]:
    """Returns probabilities, `known` (0 without it) and features [C + 1 + D] from the file, or computes them.

    Raises PictureError and EngineError.
    """
    contract = model.contract
    count = len(contract.labels) + 1 + (contract.features or 0)
    with suppress(ModelError, ValueError):
        stored = np.frombuffer(read_bytes(path, 4 * count), "<f4")
        if stored.shape == (count,) and np.isfinite(stored).all():
            return stored.astype(np.float32)
    output = infer(DECODERS.decode(photo.path, contract.input_size))
    assert output.features is not None  # check_teachable
    values = np.concatenate([output.probabilities, [output.known or 0.0], output.features])
    with suppress(OSError), atomic_write(path) as file:  # it is computed again
        file.write(values.astype("<f4").tobytes())
    return values.astype(np.float32)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one program at a time change the folder, which is created. Raises UserError."""
    with ExitStack() as stack:
        with reported_writes(folder, LEARNED_FLAG):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(exclusive_lock(folder / LOCK_NAME))
            except BlockingIOError:
                raise UserError(
                    f"{folder}: another program is learning: try again in a few seconds"
                ) from None
        yield
