"""Read run folders: a trained model and the record of how it was made. train/run_writer.py writes them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.errors import ModelError, UserError
from runtime.common.text import printable
from runtime.model_file.statistics import ModelStatistics
from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import SPLITS, Dataset
from train.data.manifest import FILE_NAME_ERRORS, LEFT_OUT_NAME, PHOTOS_NAME, read_manifest
from train.settings import recorded_settings

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray


# A packed run (train/pack_run.py) has these two files instead of model.keras.
PACKED_WEIGHTS = "changes.safetensors"
PACKED_ARCHITECTURE = "architecture.json"
# The statistics of the model's descriptors (runtime/model_file/statistics.py), unless it has no `known`.
STATISTICS = "statistics.safetensors"
# The uncompressed model's label of each val and test photo, in a run that train.compress made.
UNCOMPRESSED_CSV = "uncompressed.csv"

# The names of all files that a run may hold.
RUN_FILES = frozenset(
    (
        *("run.json", "settings.toml", PHOTOS_NAME, LEFT_OUT_NAME, "metrics.json", "history.csv"),
        *("model.keras", PACKED_WEIGHTS, PACKED_ARCHITECTURE, STATISTICS, UNCOMPRESSED_CSV),
        *("report.html", "curves.png", "confusion.png"),
        *("near_duplicates.csv", "suspect_labels.csv", "added_photos.csv"),
    )
)

# The fields of run.json and their types.
FIELD_TYPES = {
    "name": str,
    "created": str,
    "recipe": str,
    "settings": dict,
    "classes": list,
    "photos_root": str,
    "negatives_root": str,
    "added_root": str,
    "synthetic": bool,
    "base_sha256": str,
    "data_sha256": str,
    "picture_version": int,
    "versions": dict,
    "device": str,
    "fine_tuning_discarded": bool,
    "temperature": float,
    "metrics": dict,
    "thresholds": dict,
    "compressed": dict,
}
# The fields of `compressed` that an export reads, unless it is empty.
COMPRESSED_TYPES = {
    "from": str,
    "through": str,
    "epochs": int,
    "size": int,
    "macs": int,
    "of_size": int,
    "of_macs": int,
    "uncompressed_top1": dict,
}
# The types of the values in three of these fields.
VALUE_TYPES = {"thresholds": (int, float), "versions": (str,), "metrics": (dict, type(None))}


class RunError(UserError):
    """A run folder that is missing, incomplete, or cannot be written."""


@dataclass(frozen=True)
class Run:
    """The contents of a run folder. `settings` map the fields of train.settings.Settings to their values,
    `metrics` map val and test to the summaries of train.evaluation.
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
    fine_tuning_discarded: bool  # no epoch of it lowered the loss on val; the weights are those before it
    metrics: Mapping[str, Any]
    thresholds: Mapping[str, float]  # by output, as in the model contract
    compressed: Mapping[str, Any]  # how train.compress made it; empty if not compressed

    def load_model(self) -> keras.Model:
        """The trained float32 model: `image` uint8 [N, H, W, 3] → `probabilities` float32 [N, C], `known`
        float32 [N, 1] if the run has a detector of unknown pictures, and `features` float32 [N, D].

        Raises RunError when the file is damaged.
        """
        import keras

        if (self.path / PACKED_WEIGHTS).is_file():
            return _load_packed(self.path, self.base_sha256)
        try:
            return keras.saving.load_model(self.path / "model.keras", compile=False)
        except Exception as error:  # Keras, zipfile and h5py raise many types for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"run {self.path}: model.keras cannot be read ({reason}); train it again"
            ) from None

    def uncompressed_labels(self) -> Mapping[str, str]:
        """The uncompressed model's label of each val and test photo, by path; empty unless compressed.

        Raises RunError when the file cannot be read.
        """
        if not self.compressed:
            return {}
        try:
            with (self.path / UNCOMPRESSED_CSV).open(
                newline="", encoding="utf-8", errors=FILE_NAME_ERRORS
            ) as file:
                return {row["path"]: row["label"] for row in csv.DictReader(file)}
        except (OSError, ValueError, KeyError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or f"{error!r}"
            raise RunError(f"run {self.path}: {UNCOMPRESSED_CSV}: {reason}; compress it again") from None

    def uncompressed_classes(self) -> dict[str, NDArray[np.intp]] | None:
        """The class indices [N] of these labels for val and test, by split; None unless compressed.

        Raises RunError when the file cannot be read, or lacks a photo.
        """
        if not self.compressed:
            return None
        labels = self.uncompressed_labels()
        try:
            return {
                split: np.array(
                    [self.classes.index(labels[photo.path]) for photo in self.dataset.split(split)], np.intp
                )
                for split in ("val", "test")
            }
        except (KeyError, ValueError) as error:
            raise RunError(f"run {self.path}: {UNCOMPRESSED_CSV} lacks {error}; compress it again") from None

    def statistics(self) -> ModelStatistics | None:
        """The statistics of the model's descriptors; None if the run has no file of them. Raises RunError
        when the file cannot be read.
        """
        file = self.path / STATISTICS
        try:
            return ModelStatistics.from_bytes(file.read_bytes()) if file.exists() else None
        except (OSError, ModelError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"run {self.path}: {STATISTICS}: {reason}; train it again") from None


def _load_packed(path: Path, base_sha256: str) -> keras.Model:
    """The model of a packed run: its own tensors, and the base's for all others."""
    import keras
    from safetensors.numpy import load

    from train.network.vgg import read_weights

    base = read_weights()
    if base.sha256 != base_sha256:
        raise RunError(f"run {path}: trained on other weights than models/vgg16; restore them or train again")
    try:
        model = keras.models.model_from_json((path / PACKED_ARCHITECTURE).read_text(encoding="utf-8"))
        packed = load((path / PACKED_WEIGHTS).read_bytes())
        for variable in model.variables:
            value = packed.get(variable.path, base.tensors.get(variable.path))
            if value is None:
                raise ValueError(f"{variable.path} is missing")
            variable.assign(value.astype(np.float32))
    except Exception as error:  # as in `load_model`
        reason = printable(" ".join(str(error).split()))[:200]
        raise RunError(
            f"run {path}: {PACKED_ARCHITECTURE} or {PACKED_WEIGHTS} cannot be read ({reason}); restore both "
            "files"
        ) from None
    return model


def open_run(
    path: Path, photos_root: Path | None = None, none: Path | None = None, added: Path | None = None
) -> Run:
    """Read a run folder. Raises RunError when it is missing or incomplete.

    `photos_root` is the folder of its photos, `none` the folder that --none named and `added` the folder that
    --add named, if they have moved since training.
    """
    path = Path(path)
    # Absolute, because paths are compared with them, and a run that is made from this run stores them.
    photos_root, none, added = (folder and folder.resolve() for folder in (photos_root, none, added))
    try:
        if not path.is_dir():
            if (old := replaced_run_dir(path)).is_dir():
                raise RunError(
                    f"run {path}: the command that replaced it was killed; to restore it, run: "
                    f"mv {shlex.quote(str(old))} {shlex.quote(str(path))}"
                )
            raise RunError(f"run {path}: no such folder; train one with: python -m train PHOTOS --out {path}")
        trained = (
            (PACKED_WEIGHTS, PACKED_ARCHITECTURE) if (path / PACKED_WEIGHTS).is_file() else ("model.keras",)
        )
        for name in ("run.json", "photos.csv", "left_out.csv", *trained):
            if not (path / name).is_file():
                raise RunError(f"run {path}: {name} is missing, so the run is incomplete; train it again")
        record = _record(path / "run.json")
        classes = tuple(record["classes"])
        root = photos_root or Path(record["photos_root"])
        negatives_root = none or (Path(record["negatives_root"]) if record["negatives_root"] else None)
        added_root = added or (Path(record["added_root"]) if record["added_root"] else None)
        dataset = read_manifest(path, root, classes, record["synthetic"], negatives_root, added_root)
        if dataset.sha256 != record["data_sha256"]:
            raise ValueError(f"{PHOTOS_NAME} lists other photos than those of run.json")
        _check_photos(dataset)
        return Run(
            path=path,
            name=record["name"] or path.resolve().name,  # the name is empty for a run written to "."
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
            fine_tuning_discarded=record["fine_tuning_discarded"],
            metrics=record["metrics"],
            thresholds=record["thresholds"],
            compressed=record["compressed"],
        )
    except OSError as error:
        raise RunError(f"run {path}: {error.strerror}; make it readable, or choose another run") from None
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise RunError(f"run {path}: its record cannot be read ({reason}); train it again") from None


def replaced_run_dir(path: Path) -> Path:
    """The folder that holds the run `path` while the new run takes its name."""
    path = path.resolve()  # a link stays; its target is replaced
    # Cut, because `path` may already have the longest name possible. The hash is that of the whole name.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{path.name[:40]}.{digest}.old")


def _record(file: Path) -> dict[str, Any]:
    """The fields of a run.json, with checked types. Raises OSError, ValueError or RecursionError."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("run.json is not a JSON object")
    # Only compressed runs have the first field, and older runs lack the others.
    roots = {"negatives_root": "", "added_root": ""}
    record: dict[str, Any] = {"compressed": {}, "fine_tuning_discarded": False, "temperature": 1.0, **roots}
    record |= found
    if record["compressed"] and isinstance(record["compressed"], dict):
        record["compressed"] = {"through": "", "of_size": 224} | record["compressed"]
    _check_types(record, FIELD_TYPES)
    if record["compressed"]:
        _check_types(record["compressed"], COMPRESSED_TYPES, "compressed.")
    record["settings"] = recorded_settings(record["settings"])
    for field, kinds in VALUE_TYPES.items():
        if not all(type(value) in kinds for value in record[field].values()):
            raise ValueError(f"a value of {field} has the wrong type")
    if not all(isinstance(label, str) for label in record["classes"]):
        raise ValueError("classes are not all texts")
    name = record["name"]
    # Export and compression name folders after it, so it must not be a path.
    if name in (".", "..") or Path(name).name != name or "\0" in name or len(os.fsencode(name)) > 255:
        raise ValueError("name is not a plain folder name")
    return record


def _check_photos(dataset: Dataset) -> None:
    """Raise ValueError for a photo of an unknown split or class, or a class without training photos."""
    labels = {*dataset.classes, NONE_LABEL}
    for photo in (*dataset.photos, *dataset.negatives):
        if photo.split not in SPLITS or photo.label not in labels:
            raise ValueError(f"{PHOTOS_NAME} has a photo of the split {photo.split} and label {photo.label}")
        if "\0" in photo.path:
            raise ValueError(f"{PHOTOS_NAME} has a path with a null character")
    if sorted({photo.label for photo in dataset.split("train")}) != list(dataset.classes):
        raise ValueError(f"the classes are not those of the training photos in {PHOTOS_NAME}")


def _check_types(record: Mapping[str, Any], types: Mapping[str, type], prefix: str = "") -> None:
    """Raise ValueError for a field that is missing or of another type."""
    for field, kind in types.items():
        if type(record.get(field)) is not kind:
            raise ValueError(f"{prefix}{field} is missing or not of type {kind.__name__}")


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` that was created last. Raises RunError without a run."""
    runs: list[tuple[str, Path]] = []
    for file in Path(root).glob("*/run.json"):
        if not file.parent.name.startswith("."):
            with suppress(OSError, ValueError, RecursionError):
                runs.append((_record(file)["created"], file.parent))
    if not runs:
        raise RunError(f"no run in {root}/; train one with: python -m train PHOTOS")
    return max(runs)[1]
