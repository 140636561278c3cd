"""Write a run folder: whole or not at all, with everything that records how the run was made."""

from __future__ import annotations

import csv
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from train.data.dataset import Dataset, write_manifest, write_table
from train.run import UNCOMPRESSED_CSV, RunError
from train.settings import settings_to_toml

if TYPE_CHECKING:
    from train.metrics import SplitMetrics


def check_output_dir(out: Path, overwrite: bool, resume: bool, dry_run: bool = False) -> bool:
    """Whether a run that is there gives way: if asked to, or if it was stopped and now goes on.

    Raises RunError where no run can be written.
    """
    if out.name in ("", ".."):
        raise RunError(f"{out}: --out takes a folder of its own, such as runs/flowers")
    try:
        gives_way = overwrite or (resume and checkpoint_dir(out).is_dir())
        if out.exists() and not (gives_way and (out / "run.json").exists()):
            what = "is not a run, so it is not replaced" if gives_way else "exists; --overwrite replaces it"
            raise RunError(f"{out} {what}, or give another --out")
        if not dry_run:
            out.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # too long a name is told: what is kept beside it has longer ones
            out.with_name(f".{out.name}.{'x' * 16}").stat()
    except OSError as error:
        raise RunError(f"{out}: cannot be made there ({error.strerror}); give another --out") from None
    if not dry_run and not os.access(out.parent, os.W_OK):
        raise RunError(f"{out}: {out.parent} cannot be written; give another --out")
    return gives_way


def checkpoint_dir(out: Path) -> Path:
    """The folder that holds what a run goes on from, once it was stopped or killed."""
    return out.with_name(f".{out.name}.resume")


@contextmanager
def new_run_dir(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes `path` at the end, whole or not at all. Raises RunError when it
    cannot be written.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    # Not by the process's number: in another container the killed one, whose folder is left, had the same.
    # Cut, for `path` may have as long a name as there can be.
    hidden = f".{path.name[:40]}.{secrets.token_hex(8)}"
    partial, old = path.with_name(hidden), path.with_name(f"{hidden}.old")
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


def write_record(folder: Path, record: Mapping[str, Any], dataset: Dataset, root: str | None = None) -> None:
    """Write run.json, settings.toml, photos.csv and left_out.csv into `folder`.

    `record` holds a Run's fields but path and dataset; `root` is written as the photos' place instead of
    where they are.
    """
    whole = {**record, "classes": list(dataset.classes)}
    whole["photos_root"] = str(dataset.root) if root is None else root
    whole |= {"synthetic": dataset.synthetic, "data_sha256": dataset.sha256}
    # In ASCII: a folder's name that is no UTF-8 can be written in no other way.
    (folder / "run.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    (folder / "settings.toml").write_text(settings_to_toml(record["settings"]), encoding="utf-8")
    write_manifest(dataset, folder)


def write_uncompressed(folder: Path, dataset: Dataset, said: Mapping[str, NDArray[np.intp]]) -> None:
    """Write what the uncompressed model calls each photo, by split as class indices [N]."""
    rows = (
        (photo.path, dataset.classes[index])
        for split, indices in said.items()
        for photo, index in zip(dataset.split(split), indices, strict=True)
    )
    write_table(folder / UNCOMPRESSED_CSV, ("path", "label"), rows)


def write_charts(
    folder: Path,
    history: Sequence[Mapping[str, object]],
    last_stage: Sequence[Mapping[str, float]],
    metrics: dict[str, SplitMetrics | None],
    classes: tuple[str, ...],
) -> None:
    from train.report.charts import draw_confusion, draw_curves

    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    columns = list(history[0]) if history else ["epoch"]
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    draw_curves(last_stage, folder / "curves.png")
    draw_confusion(metrics, classes, folder / "confusion.png")


def print_summaries(summaries: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Print what run.json says of each split."""
    for split, summary in summaries.items():
        if summary is None:
            print(f"{split}: no photos, so nothing is known")
            continue
        print(
            f"{split}: top-1 {summary['top1']:.1%} of {summary['n']:,} photos, loss {summary['loss']:.3f}, "
            f"calibration error {summary['ece']:.3f}"
            + (f", {summary['unknown']:.1%} called unknown" if "unknown" in summary else "")
        )


def package_versions() -> dict[str, str]:
    """Of what a result can depend on."""
    found = {"python": platform.python_version()}
    for package in ("vgg-edge", "tensorflow", "keras", "numpy", "pillow"):
        # A clone may be run without being installed, and Keras without TensorFlow.
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
