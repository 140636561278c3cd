"""Which model file to open, where several could be meant."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME, file_mode, is_file, unreadable
from runtime.model_file.formats import FORMATS, PRECISIONS
from runtime.model_file.index import IndexedFile, read_index

if TYPE_CHECKING:
    from runtime.model_file.signature import Signature


@dataclass(frozen=True)
class ModelSelection:
    """A file to open, with the index entry and the signature that it must agree with."""

    path: Path
    contract: Contract | None  # of the index
    indexed: IndexedFile | None
    candidates: tuple[IndexedFile, ...] = ()  # the indexed files that were there to choose from
    signature: "Signature | None" = None
    reason: str = field(default="", compare=False)  # why this model was chosen, when no path was given
    # The folder whose index lists the file: NAME, also while NAME.old stands in for it.
    folder: Path | None = field(default=None, compare=False)


def choose_model(
    path: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    prefer: str = "",
    key: str | Path | None = None,
) -> ModelSelection:
    """Returns which file to open: `path` itself, or the best file in the folder `path` in one of `formats`.

    The file with the sha256 `prefer` is the best if the folder has it. Then the order of `formats` decides,
    then PRECISIONS. Without a path, `default_model` chooses, and `reason` says why. With `key`, a valid
    signature must cover the index. Raises ModelError.
    """
    if path is None:
        from runtime.model_file.default_model import default_model  # late: not needed with a path

        default = default_model(formats)
        return replace(_choose(default.path, formats, prefer, key), reason=default.reason)
    path = Path(path)
    found = _or_old(path)
    selection = _choose(found, formats, prefer, key)
    return selection if found == path else replace(selection, folder=path)


def _choose(path: Path, formats: Sequence[str], prefer: str, key: str | Path | None) -> ModelSelection:
    mode = file_mode(path)
    if not mode:
        raise ModelError(
            f"{path}: no such file or folder: --model takes a .tflite, an .onnx or a folder with {INDEX_NAME}"
        )
    if path.name == INDEX_NAME and not S_ISDIR(mode):
        raise ModelError(
            f"{path}: is the index of a folder of models: --model takes the folder, {path.parent}"
        )
    signature = None if key is None else _read_signature(path, key)
    if S_ISDIR(mode):
        return _choose_in_folder(path, formats, prefer, signature)
    if is_file(path.parent / INDEX_NAME):
        # A FILE.sig does not cover the index, which then only has to agree with the file.
        covers_index = signature and INDEX_NAME in signature.files
        index = read_index(path.parent, signature if covers_index else None)
        for file in index.files:
            if file.file == path.name:
                return ModelSelection(path, index.contract, file, (file,), signature, folder=path.parent)
    return ModelSelection(path, None, None, signature=signature)


def _read_signature(path: Path, key: str | Path) -> "Signature":
    from runtime.model_file.signature import read_signature  # late: few models are opened with a key

    try:
        return read_signature(path, key)
    except OSError as error:
        raise unreadable(path, error) from None


def _choose_in_folder(
    folder: Path, formats: Sequence[str], prefer: str, signature: "Signature | None"
) -> ModelSelection:
    index = read_index(folder, signature)
    candidates = tuple(file for file in index.files if is_file(folder / file.file))
    usable = [file for file in candidates if file.format in formats]
    if not usable:
        has = " and ".join(sorted({file.format for file in index.files})) or "no"
        raise ModelError(f"{folder}: has {has} files, none for this engine ({', '.join(formats)})")

    def rank(file: IndexedFile) -> tuple[bool, int, int, str]:
        precision = PRECISIONS.index(file.precision)
        return file.sha256 != prefer, formats.index(file.format), precision, file.file

    best = min(usable, key=rank)
    return ModelSelection(folder / best.file, index.contract, best, candidates, signature, folder=folder)


def _or_old(path: Path) -> Path:
    """Returns NAME.old in the moment of an export's swap: NAME → NAME.old, then the new folder → NAME."""
    old = path.with_name(path.name + ".old") if path.name else path
    return old if not file_mode(path) and is_file(old / INDEX_NAME) else path
