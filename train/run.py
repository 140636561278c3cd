"""A run folder: a trained model and the whole record of how it was made. The one writer and the one reader
of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from train.dataset import Dataset, read_manifest, write_manifest

if TYPE_CHECKING:
    import keras


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

    def model(self) -> keras.Model:
        """The trained model, float32: `image` uint8 [N, 224, 224, 3] → `probabilities` float32 [N, C].

        Raises RunError when its file is damaged.
        """
        import keras

        try:
            return keras.saving.load_model(self.path / "model.keras", compile=False)
        except Exception as error:  # Keras, zipfile and h5py raise many kinds for a file that is damaged
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"run {self.path}: model.keras cannot be read ({reason}); train it again"
            ) from None


def open_run(path: Path) -> Run:
    """Read a run folder; raises RunError when it is missing or not whole."""
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"run {path}: no such folder; train one with: python -m train PHOTOS --out {path}")
    for name in ("run.json", "photos.csv", "left_out.csv", "model.keras"):
        if not (path / name).is_file():
            raise RunError(f"run {path}: {name} is missing, so this is not a whole run; train it again")
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        classes = tuple(record["classes"])
        dataset = read_manifest(path, Path(record["photos_root"]), classes, record["synthetic"])
        return Run(
            path=path,
            name=record["name"],
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
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"run {path}: its record cannot be read ({error!r}); train it again") from None


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` created last; raises RunError when there is none."""
    runs: list[tuple[str, Path]] = []
    for file in Path(root).glob("*/run.json"):
        if not file.parent.name.startswith("."):
            try:
                runs.append((json.loads(file.read_text(encoding="utf-8"))["created"], file.parent))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    if not runs:
        raise RunError(f"no run under {root}/; train one with: python -m train PHOTOS")
    return max(runs)[1]


def write_record(folder: Path, record: Mapping[str, Any], dataset: Dataset) -> None:
    """Write run.json, photos.csv and left_out.csv into `folder`. `record` holds a Run's fields but path
    and dataset.
    """
    whole = {**record, "classes": list(dataset.classes), "photos_root": str(dataset.root)}
    whole |= {"synthetic": dataset.synthetic, "data_sha256": dataset.sha256}
    (folder / "run.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(dataset, folder)


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes `path` at the end, whole or not at all. Raises RunError when it
    cannot be written.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    old = path.with_name(f".{path.name}.old.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if path.exists() and overwrite:
            path.rename(old)
        partial.rename(path)
    except OSError as error:
        raise RunError(
            f"run {path}: cannot be written ({error.strerror or error}); make room there"
        ) from None
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
