"""model.json, the index of a model folder: the contract that its files share, and each file's sha256."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.common.errors import ModelError
from runtime.common.text import is_name
from runtime.model_file.contract import Contract, parse_contract, parse_json, require_field
from runtime.model_file.files import INDEX_NAME, MAX_JSON_BYTES, MAX_MODEL_BYTES, is_file, read_bytes
from runtime.model_file.formats import FORMATS, PRECISIONS

if TYPE_CHECKING:
    from runtime.model_file.signature import Signature

MAX_FILE_NAME_BYTES = 255


@dataclass(frozen=True)
class IndexedFile:
    """A model file as the index lists it."""

    file: str  # a bare name, in the index's own folder
    format: str  # one of FORMATS
    precision: str  # one of PRECISIONS
    bytes: int
    sha256: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Index:
    """The content of model.json: the contract that the folder's files share, and the files."""

    contract: Contract
    files: tuple[IndexedFile, ...]

    def to_json(self) -> str:
        fields = {"contract": self.contract.to_fields(), "files": [asdict(file) for file in self.files]}
        return json.dumps(fields, ensure_ascii=False, indent=1)


def read_index(folder: Path, signature: "Signature | None" = None) -> Index:
    """Reads and checks `folder`/model.json, against the signature if there is one. Raises ModelError."""
    path = folder / INDEX_NAME
    if not is_file(path):
        files = sorted(file.name for file in folder.glob("*") if file.suffix.lstrip(".") in FORMATS)
        one_file = f", or one file, such as {folder / files[0]}" if files else ""
        raise ModelError(
            f"{folder}: has no {INDEX_NAME}: choose a folder that `python -m export` wrote{one_file}"
        )
    try:
        text = read_bytes(path, MAX_JSON_BYTES)
        if signature:
            signature.check(path, hashlib.sha256(text).hexdigest())
        fields = parse_json(text)
        contract = parse_contract(require_field(fields, "contract", dict))
        return Index(contract, tuple(map(_parse_file, require_field(fields, "files", list))))
    except ModelError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ModelError(f"{path}: {reason}") from None


def _parse_file(fields: Any) -> IndexedFile:
    if not isinstance(fields, dict):
        raise ModelError("files must be a list of objects")
    file, format, precision = (require_field(fields, name, str) for name in ("file", "format", "precision"))
    if not _is_bare_file_name(file):
        raise ModelError(f"{file[:40]!r} is not a bare file name")
    if format not in FORMATS or precision not in PRECISIONS:
        raise ModelError(
            f"{file}: this runtime does not know the format {format[:40]!r} with precision {precision[:40]!r}"
        )
    if not 0 <= (size := require_field(fields, "bytes", int)) <= MAX_MODEL_BYTES:
        raise ModelError(f"{file}: its number of bytes must be 0 to {MAX_MODEL_BYTES:,}")
    if not re.fullmatch("[0-9a-f]{64}", sha256 := require_field(fields, "sha256", str)):
        raise ModelError(f"{file}: its sha256 is not one of 64 hexadecimal digits")
    return IndexedFile(
        file=file,
        format=format,
        precision=precision,
        bytes=size,
        sha256=sha256,
        metrics=require_field(fields, "metrics", dict),
    )


def _is_bare_file_name(name: str) -> bool:
    """Whether a name stays in the index's folder, on any system."""
    fits = is_name(name) and len(name.encode()) <= MAX_FILE_NAME_BYTES
    return fits and not re.search(r"[/\\:]", name) and name not in (".", "..")
