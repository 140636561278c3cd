"""Which model is used when a command gets no --model, and why."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME, MAX_MODEL_BYTES, file_mode, is_file, read_bytes
from runtime.model_file.formats import FORMATS, PRECISIONS, detect_format, named_precision, read_contract
from runtime.model_file.index import read_index

MODELS = Path("models")
# The small release is newer than models/flowers, but less accurate: it is the default only if ./models has no
# other usable model.
SMALL_RELEASE = MODELS / "flowers_small"
MAX_SKIPPED = 3  # skipped models that the reason names
UNRANKED = ("", 0, 0)


@dataclass(frozen=True)
class DefaultModel:
    """The model to use, and the reason of the choice."""

    path: Path  # a folder or a file
    reason: str


@dataclass(frozen=True)
class _Candidate:
    path: Path
    rank: tuple[str, int, int]  # the highest is chosen: time of creation, then format, then precision
    problem: str = ""  # why it cannot be chosen


def default_model(formats: Sequence[str]) -> DefaultModel:
    """Returns the newest usable model in ./models, else the released model. Raises ModelError.

    SMALL_RELEASE counts only if there is no other.

    The models in ./models are its folders with an index, and its .tflite and .onnx files. A model that was
    trained on generated pictures is skipped. The reason names how many there were, and which were skipped.
    """
    candidates = [*_model_folders(), *_single_files(formats)]
    usable = [candidate for candidate in candidates if not candidate.problem]
    skipped = _list_skipped([candidate for candidate in candidates if candidate.problem])
    if usable:
        others = [candidate for candidate in usable if candidate.path != SMALL_RELEASE]
        besides = f" besides {SMALL_RELEASE.name}" if 0 < len(others) < len(usable) else ""
        usable = others or usable
        newest = max(usable, key=lambda candidate: candidate.rank)
        if len(usable) > 1:
            reason = f"the newest of {len(usable)} models in ./models{besides}; --model selects another"
        else:
            reason = f"the only model in ./models{besides}"
        return DefaultModel(newest.path, reason + skipped)
    package = Path(__file__).parents[1]
    for released in (package / "released", package.parent / "models" / "flowers"):  # in a wheel, in a clone
        if is_file(released / INDEX_NAME):
            return DefaultModel(released, f"the released model; ./models has no other{skipped}")
    raise ModelError(
        "no model in ./models and none in this package: use --model FOLDER, or create a model with "
        f"`python -m export`{skipped}"
    )


def _list_skipped(skipped: Sequence[_Candidate]) -> str:
    if not skipped:
        return ""
    named = [f"{candidate.path}: {candidate.problem}" for candidate in skipped[:MAX_SKIPPED]]
    more = [f"{len(skipped) - MAX_SKIPPED} more"] if len(skipped) > MAX_SKIPPED else []
    return f"; skipped {', '.join([*named, *more])}"


def _model_folders() -> Iterator[_Candidate]:
    for index in (MODELS / INDEX_NAME, *_find(f"*/{INDEX_NAME}")):
        folder = index.parent
        try:
            if is_file(index) and not _is_exports_own(folder):
                facts = _facts(read_index(folder).contract)
                # Above single files: a folder holds the best format and precision.
                yield _candidate(folder, facts, 1, 0)
        except ModelError as error:
            yield _Candidate(folder, UNRANKED, str(error).removeprefix(f"{index}: "))
    for folder in _find("[!.]*"):
        if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
            yield _Candidate(folder, UNRANKED, "permission denied")


def _is_exports_own(folder: Path) -> bool:
    """Whether an export wrote the folder for itself: half written, rejected, or replaced by a newer one."""
    replaced = folder.suffix == ".old" and S_ISDIR(file_mode(folder.with_suffix("")))
    return folder.name.startswith(".") or folder.suffix == ".rejected" or replaced


def _single_files(formats: Sequence[str]) -> Iterator[_Candidate]:
    """Yields the model files directly in ./models, without those that an index there lists."""
    listed: set[str] = set()
    with suppress(ModelError):
        listed = {file.file for file in read_index(MODELS).files}
    for path in _find("*.*"):
        format = path.suffix.removeprefix(".")
        if format not in FORMATS or path.name.startswith(".") or path.name in listed:
            continue
        try:
            if is_file(path):
                yield _single_file(path, format, formats)
        except (ModelError, OSError) as error:
            yield _Candidate(path, UNRANKED, str(error).removeprefix(f"{path}: "))


def _single_file(path: Path, format: str, formats: Sequence[str]) -> _Candidate:
    if format not in formats:
        return _Candidate(path, UNRANKED, "another engine runs it")
    status = path.stat()
    facts = _read_facts(path, status.st_size, status.st_mtime_ns)
    if isinstance(facts, str):
        return _Candidate(path, UNRANKED, facts)
    name = named_precision(path.stem)
    precision = PRECISIONS.index(name) if name else len(PRECISIONS)
    return _candidate(path, facts, -formats.index(format), -precision)


def _find(pattern: str) -> list[Path]:
    """Returns the paths in ./models; none where this user may not look."""
    with suppress(OSError):
        return sorted(MODELS.glob(pattern))
    return []


@dataclass(frozen=True)
class _Facts:
    """The part of a contract that decides about the default: few bytes, of a contract that may have 1 MB."""

    created: str
    synthetic: bool


def _facts(contract: Contract) -> _Facts:
    return _Facts(contract.created[:19], contract.synthetic)


def _candidate(path: Path, facts: _Facts, format: int, precision: int) -> _Candidate:
    problem = "trained on generated pictures" if facts.synthetic else ""
    return _Candidate(path, (facts.created, format, precision), problem)


@lru_cache(maxsize=1000)  # a service checks its model once per second, and must not read each file each time
def _read_facts(path: Path, size: int, mtime_ns: int) -> _Facts | str:
    """Returns the facts, or why the file's content has none. Raises ModelError when it cannot be read."""
    data = read_bytes(path, MAX_MODEL_BYTES)
    try:
        return _facts(read_contract(data, detect_format(path, data)))
    except ModelError as error:  # returned, because lru_cache forgets exceptions
        return str(error)
