"""The highest release of each signed model that this user has run: an older one is refused.

A signature proves who made a model, not that it is the newest: without this record, a person who can write
the model's folder could bring back an old model with its valid signature.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.common.atomic import atomic_write
from runtime.common.errors import ModelError
from runtime.common.file_lock import exclusive_lock
from runtime.common.user_cache import state_home
from runtime.model_file.contract import parse_json
from runtime.model_file.files import MAX_JSON_BYTES, is_file, read_bytes

if TYPE_CHECKING:
    from runtime.model_file.loader import ModelFile

FILE_NAME = "releases.json"  # {sha256 of the signer's key: {name of the model: highest release}}

LOCK_SECONDS = 5.0  # a service holds the lock for milliseconds

_Releases = dict[str, dict[str, int]]


def check_release(model: "ModelFile") -> None:
    """Raises ModelError for a signed model that is older than one of its name and key that has run.

    A model that needs no signature always passes.
    """
    if model.signature is None:
        return
    contract = model.contract
    highest = _read(_path()).get(model.signature.key, {}).get(contract.name, 0)
    if contract.release < highest:
        raise ModelError(
            f"{model.path}: is release {contract.release} of {contract.name}, and release {highest} has run "
            "here: copy the newest release, or accept this one with --allow-rollback"
        )


def record_release(model: "ModelFile", *, allow_rollback: bool = False) -> None:
    """Records that a signed model has run. With `allow_rollback`, an older one replaces the highest release.

    Raises ModelError when the record cannot be read or written.
    """
    if model.signature is None:
        return
    path, key = _path(), model.signature.key
    if not _is_new(_read(path), key, model, allow_rollback):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_name(f"{FILE_NAME}.lock"), wait=LOCK_SECONDS):
            releases = _read(path)  # again: another service may have recorded a release meanwhile
            if not _is_new(releases, key, model, allow_rollback):
                return
            releases.setdefault(key, {})[model.contract.name] = model.contract.release
            with atomic_write(path) as file:
                file.write(json.dumps(releases, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise ModelError(
            f"{path}: {reason}: the release of a signed model is recorded here; set XDG_STATE_HOME to a "
            "folder that you may write"
        ) from None


def _is_new(releases: _Releases, key: str, model: "ModelFile", allow_rollback: bool) -> bool:
    """Whether the model's release is to be recorded."""
    highest, release = releases.get(key, {}).get(model.contract.name, 0), model.contract.release
    return release > highest or (release < highest and allow_rollback)


def _path() -> Path:
    try:
        return state_home() / FILE_NAME
    except RuntimeError:
        raise ModelError(
            "this user has no home folder for the record of signed models: set XDG_STATE_HOME to a folder "
            "that the user may write"
        ) from None


def _read(path: Path) -> _Releases:
    """Returns the record; an empty one if the file does not exist. Raises ModelError."""
    if not is_file(path):
        return {}
    try:
        releases = parse_json(read_bytes(path, MAX_JSON_BYTES))
        if not all(
            isinstance(of_key, dict) and all(type(release) is int for release in of_key.values())
            for of_key in releases.values()
        ):
            raise ModelError("is not a record of releases")
    except ModelError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ModelError(
            f"{path}: {reason}: remove it; the next signed model that runs starts a new record"
        ) from None
    return releases
