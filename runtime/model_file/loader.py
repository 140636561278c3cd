"""Opens a model file: reads it once, checks it, and keeps the checked bytes for the engine.

Everything that is read is hostile until it is parsed. The bytes that were checked are the bytes that the
engine gets, so that a file cannot change between the check and its use.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME, MAX_MODEL_BYTES, read_bytes
from runtime.model_file.formats import (
    FORMATS,
    check_content,
    detect_format,
    read_contract,
    read_statistics_bytes,
)
from runtime.model_file.selection import ModelSelection, choose_model

if TYPE_CHECKING:
    from runtime.model_file.signature import Signature
    from runtime.model_file.statistics import ModelStatistics

KEY_VARIABLE = "VGG_EDGE_KEY"  # names a public key's file, used where no other key is given


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read once and checked. An engine gets its `data`."""

    path: Path
    format: str
    precision: str  # "" for a file without an index, which does not say
    data: bytes
    sha256: str
    contract: Contract
    signature: "Signature | None" = None  # the valid signature, when a key was given
    reason: str = ""  # why this model was chosen, when no path was given
    folder: Path | None = None  # the folder whose index lists the file: NAME, also for a file in NAME.old

    def read_statistics(self) -> "ModelStatistics":
        """Returns the statistics of the model's features. Raises ModelError when it has none, or others.

        They are parsed here and not when the file is opened, because classifying does not need them.
        """
        from runtime.model_file.statistics import ModelStatistics

        if not self.contract.statistics_sha256:
            raise ModelError(f"{self.path}: holds no statistics of its features: export it again")
        try:
            data = read_statistics_bytes(self.data, self.format)
            if hashlib.sha256(data).hexdigest() != self.contract.statistics_sha256:
                raise ModelError("its statistics differ from their sha256 in the contract: export it again")
            statistics = ModelStatistics.from_bytes(data)
            statistics.check(self.contract)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None
        return statistics


def open_model(
    path: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    prefer: str = "",
    key: str | Path | None = None,
) -> ModelFile:
    """Chooses a file as `choose_model` does, reads it once and checks it against index and contract.

    With `key`, a public key's PEM file (default: the file that VGG_EDGE_KEY names, if it is set), only a
    model that this key signed is opened. Raises ModelError when there is no such model, or it is damaged, has
    another contract version, differs from its index, needs another file, or lacks a valid signature, and when
    the key is empty.
    """
    key = _trusted_key(key)
    reason = ""
    while True:
        previous = reason
        try:
            return _read_model(choose_model(path, formats, prefer=prefer, key=key))
        except ModelError as error:
            # An export may swap the folder between two reads: the same error twice is a real one.
            reason = str(error)
            if reason == previous:
                raise


def _trusted_key(key: str | Path | None) -> str | Path | None:
    """Returns the key, else the key that VGG_EDGE_KEY names, or None without either.

    Raises ModelError when it is empty, as from a variable that a script forgot to set: then nothing would be
    checked.
    """
    name = "the key"
    if key is None:
        key, name = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    if key == "":
        raise ModelError(f"{name} is empty: name the file of a public key, or leave it out to check nothing")
    return key


def _read_model(selection: ModelSelection) -> ModelFile:
    path, indexed = selection.path, selection.indexed
    data = read_bytes(path, MAX_MODEL_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    if selection.signature:
        selection.signature.check(path, sha256)
    if indexed and len(data) != indexed.bytes:
        raise ModelError(
            f"{path}: {len(data):,} bytes, but {INDEX_NAME} lists {indexed.bytes:,}: copy it again"
        )
    if indexed and sha256 != indexed.sha256:
        raise ModelError(
            f"{path}: its sha256 differs from {INDEX_NAME} ({sha256[:12]}… is not {indexed.sha256[:12]}…)"
        )
    try:
        format = indexed.format if indexed else detect_format(path, data)
        contract = read_contract(data, format)
        check_content(data, format)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if selection.contract and contract != selection.contract:
        raise ModelError(
            f"{path}: the contract inside it differs from the contract in {INDEX_NAME}: export again"
        )
    precision = indexed.precision if indexed else ""
    return ModelFile(
        path,
        format,
        precision,
        data,
        sha256,
        contract,
        selection.signature,
        selection.reason,
        selection.folder,
    )
