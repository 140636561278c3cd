"""A run folder: a trained model and the whole record of how it was made. The one writer and the one reader
of it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.errors import UserError
from runtime.common.text import printable
from train.data.dataset import NAMES, Dataset, read_manifest

if TYPE_CHECKING:
    import keras


# What a run in its smallest form has instead of model.keras.
PACKED_WEIGHTS = "changes.safetensors"
PACKED_ARCHITECTURE = "architecture.json"
# What the uncompressed model calls each photo of val and test, in a run that train/compress.py made.
UNCOMPRESSED_CSV = "uncompressed.csv"

# Of run.json, what each field is.
FIELDS = {
    "name": str,
    "created": str,
    "recipe": str,
    "settings": dict,
    "classes": list,
    "photos_root": str,
    "synthetic": bool,
    "base_sha256": str,
    "data_sha256": str,
    "picture_version": int,
    "versions": dict,
    "device": str,
    "metrics": dict,
    "thresholds": dict,
    "compressed": dict,
}
# What the values of some of them are.
VALUES = {"thresholds": (int, float), "versions": (str,), "metrics": (dict, type(None))}


class RunError(UserError):
    """A run folder that is missing, in the way, or not whole."""


@dataclass(frozen=True)
class Run:
    """A run folder as read. `settings` are train.settings.Settings as a mapping; `metrics` are of val and
    test.
    """

    path: Path
    name: str
    created: str  # ISO 8601, UTC
    recipe: str
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    dataset: Dataset
    synthetic: bool
    base_sha256: str
    data_sha256: str
    picture_version: int
    versions: Mapping[str, str]
    device: str
    metrics: Mapping[str, Any]
    thresholds: Mapping[str, float]  # by output, as in the contract
    compressed: Mapping[str, Any]  # what train/compress.py did to it; empty if nothing

    def load_model(self) -> keras.Model:
        """The trained model, float32: `image` uint8 [N, H, W, 3], 224 x 224 unless compressed →
        `probabilities` float32 [N, C], and `known` float32 [N, 1] if it learnt that.

        Raises RunError when its file is damaged.
        """
        import keras

        if (self.path / PACKED_WEIGHTS).is_file():
            return _rebuilt(self.path, self.base_sha256)
        try:
            return keras.saving.load_model(self.path / "model.keras", compile=False)
        except Exception as error:  # Keras, zipfile and h5py raise many kinds for a file that is damaged
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"run {self.path}: model.keras cannot be read ({reason}); train it again"
            ) from None

    def uncompressed_labels(self) -> Mapping[str, str]:
        """By photo of val and test, what the uncompressed model calls it; nothing of a run not compressed.

        Raises RunError.
        """
        if not self.compressed:
            return {}
        try:
            with (self.path / UNCOMPRESSED_CSV).open(newline="", encoding="utf-8", errors=NAMES) as file:
                return {row["path"]: row["label"] for row in csv.DictReader(file)}
        except (OSError, ValueError, KeyError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or f"{error!r}"
            raise RunError(f"run {self.path}: {UNCOMPRESSED_CSV}: {reason}; compress it again") from None


def _rebuilt(path: Path, base_sha256: str) -> keras.Model:
    """The model of a run that train/keep.py wrote: its own tensors, and the base's for the others."""
    import keras
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from train.network.vgg import read_weights

    base = read_weights()
    if base.sha256 != base_sha256:
        raise RunError(f"run {path}: is of another base than models/vgg16; check that out, or train again")
    try:
        model = keras.models.model_from_json((path / PACKED_ARCHITECTURE).read_text(encoding="utf-8"))
        changes = load((path / PACKED_WEIGHTS).read_bytes())
        for variable in model.variables:
            found = changes.get(variable.path, base.tensors.get(variable.path))
            if found is None:
                raise ValueError(f"{variable.path} is missing")
            variable.assign(found.astype(np.float32))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"run {path}: {PACKED_WEIGHTS} cannot be read ({reason}); check it out again"
        ) from None
    return model


def open_run(path: Path, photos_root: Path | None = None) -> Run:
    """Read a run folder; raises RunError when it is missing or not whole.

    `photos_root` says where its photos are, if no longer where they were trained on.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            raise RunError(f"run {path}: no such folder; train one with: python -m train PHOTOS --out {path}")
        trained = (
            (PACKED_WEIGHTS, PACKED_ARCHITECTURE) if (path / PACKED_WEIGHTS).is_file() else ("model.keras",)
        )
        for name in ("run.json", "photos.csv", "left_out.csv", *trained):
            if not (path / name).is_file():
                raise RunError(f"run {path}: {name} is missing, so this is not a whole run; train it again")
        record = _record(path / "run.json")
        classes = tuple(record["classes"])
        root = photos_root or Path(record["photos_root"])
        dataset = read_manifest(path, root, classes, record["synthetic"])
        return Run(
            path=path,
            name=record["name"] or path.resolve().name,  # of one written to "."
            created=record["created"],
            recipe=record["recipe"],
            settings=record["settings"],
            classes=classes,
            dataset=dataset,
            synthetic=record["synthetic"],
            base_sha256=record["base_sha256"],
            data_sha256=record["data_sha256"],
            picture_version=record["picture_version"],
            versions=record["versions"],
            device=record["device"],
            metrics=record["metrics"],
            thresholds=record["thresholds"],
            compressed=record["compressed"],
        )
    except OSError as error:
        raise RunError(f"run {path}: {error.strerror}; make it readable, or give another run") from None
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise RunError(f"run {path}: its record cannot be read ({reason}); train it again") from None


def _record(file: Path) -> dict[str, Any]:
    """A run.json, each field of its type. Raises OSError, ValueError, RecursionError."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("run.json is not a JSON object")
    record: dict[str, Any] = {"thresholds": {}, "compressed": {}} | found  # older runs have none
    for field, kind in FIELDS.items():
        if type(record.get(field)) is not kind:
            raise ValueError(f"{field} is missing or not of type {kind.__name__}")
    for field, kinds in VALUES.items():
        if not all(type(value) in kinds for value in record[field].values()):
            raise ValueError(f"a value of {field} is of another type than it must be")
    if not all(isinstance(label, str) for label in record["classes"]):
        raise ValueError("classes are not all names")
    name = record["name"]
    # It becomes a folder's where a run is exported or compressed: one that must not lead elsewhere.
    if name in (".", "..") or Path(name).name != name or "\0" in name or len(os.fsencode(name)) > 255:
        raise ValueError("name is not a bare name of a folder")
    return record


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` created last; raises RunError when there is none."""
    runs: list[tuple[str, Path]] = []
    for file in Path(root).glob("*/run.json"):
        if not file.parent.name.startswith("."):
            with suppress(OSError, ValueError, RecursionError):
                runs.append((_record(file)["created"], file.parent))
    if not runs:
        raise RunError(f"no run under {root}/; train one with: python -m train PHOTOS")
    return max(runs)[1]
