"""Which model file to open, where several could be meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME, file_mode, is_file, unreadable
from runtime.model_file.index import FORMATS, PRECISIONS, IndexedFile, read_index

if TYPE_CHECKING:
    from runtime.model_file.signature import Signature


@dataclass(frozen=True)
class ModelSelection:
    """A file to open, and what it must agree with: the index that lists it, and a signature."""

    path: Path
    contract: Contract | None  # of the index
    indexed: IndexedFile | None
    candidates: tuple[IndexedFile, ...] = ()  # the indexed files that were there to choose from
    signature: "Signature | None" = None


def choose_model(
    path: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    prefer: str = "",
    key: str | Path | None = None,
) -> ModelSelection:
    """Returns which file to open: `path` itself, or the best file in the folder `path` in one of `formats`.

    The file with the sha256 `prefer` is the best if the folder has it. Then the order of `formats` decides,
    then PRECISIONS. Without a path: the newest folder under ./models that is not synthetic, else the released
    model that came with the package. With `key`, a valid signature must cover the index. Raises ModelError.
    """
    path = _default_folder() if path is None else _or_old(Path(path))
    mode = file_mode(path)
    if not mode:
        raise ModelError(
            f"{path}: no such file or folder: --model takes a .tflite, an .onnx or a folder with {INDEX_NAME}"
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
                return ModelSelection(path, index.contract, file, (file,), signature)
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
    return ModelSelection(folder / best.file, index.contract, best, candidates, signature)


def _default_folder() -> Path:
    """Returns the newest folder under ./models by `created`, without those whose index cannot be read."""
    newest: tuple[str, Path] | None = None
    for path in sorted(Path("models").glob(f"*/{INDEX_NAME}")):
        folder = path.parent
        hidden = folder.name.startswith(".") or folder.suffix == ".rejected"
        if hidden or (folder.suffix == ".old" and S_ISDIR(file_mode(folder.with_suffix("")))):
            continue
        try:
            contract = read_index(folder).contract
        except ModelError:
            continue
        if not contract.synthetic and (newest is None or contract.created[:19] > newest[0]):
            newest = contract.created[:19], folder
    if newest:
        return newest[1]
    package = Path(__file__).parents[1]
    for released in (package / "released", package.parent / "models" / "flowers"):  # in a wheel, in a clone
        if is_file(released / INDEX_NAME):
            return released
    raise ModelError(
        "no model under ./models and none in this package: --model FOLDER, or `python -m export` makes one"
    )


def _or_old(path: Path) -> Path:
    """Returns NAME.old in the moment of an export's swap: NAME → NAME.old, then the new folder → NAME."""
    old = path.with_name(path.name + ".old") if path.name else path
    return old if not file_mode(path) and is_file(old / INDEX_NAME) else path
