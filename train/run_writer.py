"""Write a run folder: complete or not at all, with everything that records how the run was made."""

from __future__ import annotations

import csv
import json
import os
import platform
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from runtime.common.file_lock import exclusive_lock
from runtime.common.terminal import print_info
from runtime.common.text import printable
from runtime.inference.prediction import UNKNOWN
from train.data.dataset import Dataset
from train.data.manifest import write_csv, write_manifest
from train.run import RUN_FILES, STATISTICS, UNCOMPRESSED_CSV, RunError, replaced_run_dir
from train.settings import settings_to_toml

if TYPE_CHECKING:
    import keras

    from train.data.near_duplicates import Pair
    from train.evaluation import Evaluation
    from train.label_errors import SuspectLabel
    from train.learning_curve import LearningCurve
    from train.metrics import AddedAnswer, SplitMetrics

SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}  # macOS and Windows add them to folders
History = Sequence[Mapping[str, object]]  # a row per epoch: its stage, its number, its metrics


@dataclass(frozen=True)
class RunContents:
    """The contents of a run folder. `record` has the fields of train.run.Run except path and dataset."""

    record: Mapping[str, Any]
    dataset: Dataset
    model: keras.Model
    history: History
    evaluation: Evaluation
    near_duplicates: Sequence[Pair] | None = None  # None: not searched
    uncompressed: Mapping[str, NDArray[Any]] | None = None  # by split, class indices; compressed runs only
    suspects: Sequence[SuspectLabel] | None = None  # None: not searched
    learning_curve: LearningCurve | None = None

    @property
    def added(self) -> Sequence[AddedAnswer]:
        """The answers for the photos of --add."""
        from train.metrics import added_answers

        outputs = self.evaluation.added
        return added_answers(self.dataset, outputs, self.evaluation.thresholds) if outputs else []


def check_output_dir(out: Path, overwrite: bool, resume: bool, dry_run: bool = False) -> bool:
    """Whether the run that exists at `out` is replaced: with `overwrite`, or when `resume` continues it.

    Raises RunError when no run can be written there.
    """
    _check_name(out)
    try:
        if not (overwrite or resume or dry_run) and checkpoint_dir(out).is_dir():
            raise RunError(f"{out}: was interrupted; add --resume to continue, or --overwrite to start again")
        replaces = overwrite or (resume and checkpoint_dir(out).is_dir())
        check_replaceable(out, replaces)
        if not dry_run:
            out.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # temporary folders beside `out` have longer names than `out`
            out.with_name(f".{out.name}.{'x' * 16}").stat()
    except OSError as error:
        raise RunError(f"{out}: cannot be created ({error.strerror}); choose another --out") from None
    if not dry_run and not os.access(out.parent, os.W_OK):
        raise RunError(f"{out}: the folder {out.parent} is not writable; choose another --out")
    return replaces


def check_replaceable(
    out: Path, overwrite: bool, argument: str = "--out", kept: Collection[str] = ()
) -> None:
    """Raise RunError if something exists at `out`, unless it is a run and `overwrite` replaces it.

    A run that holds a folder, or a file that no run has, is not replaced, unless the command keeps the file:
    `kept` are the names. `argument` is the command's name for `out`.
    """
    if out.exists() and not (out / "run.json").exists():
        raise RunError(f"{out}: exists and is not a run, so it is not replaced; choose another {argument}")
    if out.exists() and not overwrite:
        raise RunError(f"{out}: exists; use --overwrite to replace it, or choose another {argument}")
    replaced = {*RUN_FILES, *SYSTEM_FILES, *kept}
    for path in sorted(out.glob("*")):
        # On an exFAT disk, macOS stores the attributes of NAME in ._NAME.
        if path.is_dir() or path.name.removeprefix("._") not in replaced:
            raise RunError(
                f"{path}: would be deleted with the run that is replaced; move this "
                f"{'folder' if path.is_dir() else 'file'}, or choose another {argument}"
            )


def keeps_existing_run(out: Path) -> bool:
    """Whether a run exists at `out`, which a command that Ctrl-C stopped must not replace; prints this."""
    if out.exists():
        print(printable(f"stopped: {out} is unchanged; the same command with --resume continues"))
    return out.exists()


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Keeps other commands from writing to `out`, and restores a run that a killed one was replacing.

    Raises RunError when another command writes to `out`, or `out` has no name.
    """
    _check_name(out)
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(out.with_name(f".{out.name}.lock")))
        except BlockingIOError:
            raise RunError(
                f"{out}: another command is writing it; wait for it, or choose another folder"
            ) from None
        except OSError:  # check_output_dir says why nothing can be written there
            pass
        _finish_swap(out)
        yield


def _finish_swap(out: Path) -> None:
    """Restores the run that a killed command was replacing, or deletes it if the new run is in place."""
    old = replaced_run_dir(out)
    with suppress(OSError):
        if (out / "run.json").exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists() and not out.exists():
            old.rename(out.resolve())
            print_info(f"{out}: the command that replaced it was killed; the run from before is back")


def _check_name(out: Path) -> None:
    if out.name in ("", ".."):
        raise RunError(f"{out}: is not the name of a folder; give one, such as runs/flowers")


def checkpoint_dir(out: Path) -> Path:
    """The folder of the checkpoints from which an interrupted run continues."""
    return out.with_name(f".{out.name}.resume")


def write_run(out: Path, contents: RunContents, overwrite: bool) -> None:
    """Write the model, its record, metrics, charts and report to `out`. Raises RunError."""
    from train.data.near_duplicates import write_pairs
    from train.label_errors import write_suspects
    from train.report.report import discarded_stage, write_report

    record, dataset, evaluation = contents.record, contents.dataset, contents.evaluation
    with new_run_dir(out, overwrite) as folder:
        contents.model.save(folder / "model.keras")
        write_record(folder, record, dataset)
        if evaluation.statistics:
            (folder / STATISTICS).write_bytes(evaluation.statistics.to_bytes())
        if contents.near_duplicates is not None:
            write_pairs(contents.near_duplicates, folder)
        if contents.uncompressed is not None:
            write_uncompressed(folder, dataset, contents.uncompressed)
        if added := contents.added:
            write_added(folder, added)
        if contents.suspects is not None:
            write_suspects(contents.suspects, folder)
        discarded = discarded_stage(record)
        write_charts(folder, contents.history, evaluation.metrics, dataset.classes, discarded)
        write_report(
            folder / "report.html",
            record,
            dataset,
            contents.history,
            evaluation.metrics,
            evaluation.probabilities,
            evaluation.negatives,
            near_duplicates=contents.near_duplicates or (),
            added=added,
            suspects=contents.suspects,
            more_photos=contents.learning_curve,
        )


@contextmanager
def new_run_dir(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `path` at the end. Raises RunError.

    After an exception `path` is as before.
    """
    path = path.resolve()  # a link stays; its target is replaced
    # Random, because a killed process of another container may have had the same process id. Cut, because
    # `path` may already have the longest name possible.
    hidden = f".{path.name[:40]}.{secrets.token_hex(8)}"
    partial, old = path.with_name(hidden), replaced_run_dir(path)
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
        reason = error.strerror or error
        raise RunError(f"run {path}: cannot be written ({reason}); free some disk space there") from None
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def write_record(folder: Path, record: Mapping[str, Any], dataset: Dataset, private: bool = False) -> None:
    """Write run.json, settings.toml, photos.csv and left_out.csv into `folder`.

    With `private` run.json does not hold the folders of photos on this machine.
    """
    roots = {
        "photos_root": str(dataset.root),
        "negatives_root": str(dataset.negatives_root or ""),
        "added_root": str(dataset.added_root or ""),
    }
    complete = {
        **record,
        "classes": list(dataset.classes),
        **(dict.fromkeys(roots, "") if private else roots),
        "synthetic": dataset.synthetic,
        "data_sha256": dataset.sha256,
    }
    # ASCII, because JSON can hold a folder name that is not valid UTF-8 only as an escape.
    (folder / "run.json").write_text(json.dumps(complete, indent=2) + "\n", encoding="utf-8")
    (folder / "settings.toml").write_text(settings_to_toml(record["settings"]), encoding="utf-8")
    write_manifest(dataset, folder)


def write_uncompressed(folder: Path, dataset: Dataset, predicted: Mapping[str, NDArray[Any]]) -> None:
    """Write the labels that the uncompressed model predicts, from class indices [N] by split."""
    rows = (
        (photo.path, dataset.classes[index])
        for split, indices in predicted.items()
        for photo, index in zip(dataset.split(split), indices, strict=True)
    )
    write_csv(folder / UNCOMPRESSED_CSV, ("path", "label"), rows)


def write_added(folder: Path, added: Sequence[AddedAnswer]) -> None:
    """Write added_photos.csv: path, label, the model's answer, its probability, and whether it is right."""
    rows = (
        (
            item.photo.path,
            item.photo.label,
            item.answer or UNKNOWN,
            f"{item.probability:.4f}",
            int(item.right),
        )
        for item in added
    )
    write_csv(folder / "added_photos.csv", ("path", "label", "answer", "probability", "right"), rows)


def write_charts(
    folder: Path,
    history: History,
    metrics: dict[str, SplitMetrics | None],
    classes: tuple[str, ...],
    discarded: str = "",
) -> None:
    """Write metrics.json, history.csv, curves.png of the last stage, and confusion.png. `discarded` is the
    stage whose weights the run does not hold.
    """
    from train.report.charts import draw_confusion, draw_curves

    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    columns = list(history[0]) if history else ["epoch"]
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    last_stage = [row for row in history if row["stage"] == history[-1]["stage"]]
    is_held = not history or history[-1]["stage"] != discarded
    draw_curves(last_stage, folder / "curves.png", mark_best=is_held)
    draw_confusion(metrics, classes, folder / "confusion.png")


def print_run(out: Path, contents: RunContents) -> None:
    """Print the metrics of each split and the paths of report and run."""
    print_summaries(contents.evaluation.summaries)
    if added := contents.added:
        _print_added(added)
    _print_photo_checks(contents)
    print(printable(f"report: {out / 'report.html'}"))
    synthetic = " (synthetic: trained on generated pictures)" if contents.dataset.synthetic else ""
    print(printable(f"run: {out}{synthetic}"))


def _print_added(added: Sequence[AddedAnswer]) -> None:
    """Print the number of added photos of each label with the right answer."""
    by_label: dict[str, list[bool]] = {}
    for item in added:
        by_label.setdefault(item.photo.label, []).append(item.right)
    labels = ", ".join(f"{label} {sum(right):,} of {len(right):,}" for label, right in by_label.items())
    total = sum(item.right for item in added)
    print(printable(f"added: {total:,} of {len(added):,} photos of --add get the right answer: {labels}"))


def _print_photo_checks(contents: RunContents) -> None:
    """Print the number of suspect labels and the estimated gain of more photos."""
    if count := sum(suspect.confident for suspect in contents.suspects or ()):
        print(
            f"labels: {count:,} training photos may have a wrong label; the report shows the first ones, and "
            "suspect_labels.csv lists all"
        )
    if contents.learning_curve:
        print(f"more photos: {contents.learning_curve.sentence}")


def print_summaries(summaries: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Print the metrics in run.json, a line per split."""
    for split, summary in summaries.items():
        if summary is None:
            print(f"{split}: no photos, so nothing was measured")
            continue
        unknown = f", {summary['unknown']:.1%} rejected as unknown" if "unknown" in summary else ""
        print(
            f"{split}: top-1 {summary['top1']:.1%} of {summary['n']:,} photos, loss {summary['loss']:.3f}, "
            f"ECE {summary['ece']:.3f}{unknown}"
        )
        if "named" in summary:
            print(
                f"{split}: {summary['named']:.1%} of {summary['negatives']:,} photos of none of the classes "
                "are named as a class instead of rejected"
            )
        if "default_named" in summary:
            named, count = summary["default_named"], summary["default_negatives"]
            print(f"{split}: {named:.1%} of {count:,} drawings of none of the classes are named")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result can depend on."""
    versions = {"python": platform.python_version()}
    for package in ("vgg-edge", "tensorflow", "keras", "numpy", "pillow"):
        # A clone may run without being installed, and Keras without TensorFlow.
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
