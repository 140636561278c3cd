"""The report of a run: one HTML page without external files.

report.html.j2 holds the text and the layout; this module computes the values. Jinja escapes everything that
comes from the user's folders, and a policy in the page prevents a browser from loading anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

from train.data.class_weights import UNEVEN_RATIO
from train.data.dataset import SPLITS, Dataset, LeftOut
from train.data.near_duplicates import Pair
from train.data.negatives import default_rows
from train.intervals import confidence_interval
from train.label_errors import MIN_JUDGED_PHOTOS, SuspectLabel, judged_labels
from train.learning_curve import MIN_CLASS_PHOTOS, LearningCurve
from train.metrics import AddedAnswer, PictureOutputs, SplitMetrics
from train.network.calibration import reliability
from train.report.charts import CURVES, confusion_picture, curve, reliability_diagram
from train.report.thumbnail import Thumbnail, data_uri, shown_path, shown_reason, thumbnail
from train.settings import RECIPES

SHOWN_MISTAKES = 12  # pictures, about 80 kB
SHOWN_SUSPECTS = 24  # photos whose label may be wrong, about 160 kB
SHOWN_PAIRS = 12  # near-duplicates with pictures, about 160 kB
SHOWN_CONFUSIONS = 10  # pairs of classes
LISTED_FILES = 100  # rows of a table of files; the .csv file beside the page has all
TABLE_CLASSES = 25  # with more classes, the confusion matrix is a picture
FOLDED_ROWS = 30  # longer tables are folded

Rows = Sequence[Mapping[str, Any]]


def write_report(
    path: Path,
    record: Mapping[str, Any],
    dataset: Dataset,
    history: Rows,
    metrics: Mapping[str, SplitMetrics | None],
    probabilities: Mapping[str, NDArray[Any]],
    negatives: Mapping[str, PictureOutputs],
    near_duplicates: Sequence[Pair] = (),
    added: Sequence[AddedAnswer] = (),
    suspects: Sequence[SuspectLabel] | None = None,
    more_photos: LearningCurve | None = None,
) -> None:
    """Write the page to `path`.

    `record` is the content of run.json; `history` has a row per epoch with its `stage`. `metrics`,
    `probabilities` [N, C] and `negatives` are those of val and test, in the order of the data set. `added`
    are the answers for the photos of --add; `suspects` is None if wrong labels were not searched.
    """
    stages = [(str(stage), list(rows)) for stage, rows in groupby(history, lambda row: row["stage"])]
    measured = [
        _split_values(split, found, dataset) for split in ("test", "val") if (found := metrics[split])
    ]
    predictions = _predictions(dataset, measured[0]["split"], probabilities) if measured else []
    discarded = discarded_stage(record)
    page = _template().render(
        record=record,
        created=datetime.fromisoformat(record["created"]),
        dataset=dataset,
        unfinished=_unfinished(record, stages),
        measured=measured,
        chance_loss=math.log(len(dataset.classes)),
        predictions=predictions,
        mistakes=_mistakes(dataset, predictions),
        negatives=_negative_values(dataset, metrics, negatives),
        added=_added_values(dataset, added),
        suspects=None if suspects is None else _suspect_values(dataset, suspects),
        more_photos=more_photos,
        reliability=_reliability(predictions),
        stages=[
            (stage, [_curve(stage, rows, name, stage != discarded) for name in CURVES])
            for stage, rows in stages
        ],
        discarded=discarded,
        splits=SPLITS,
        classes=_photo_counts(dataset),
        near_duplicates=near_duplicates,
        pictured_pairs=_pictured_pairs(dataset, near_duplicates),
        listed_pairs=[
            [(shown_path(dataset, photo.path), photo.split) for photo in (pair.photo, pair.other)]
            for pair in near_duplicates[SHOWN_PAIRS:LISTED_FILES]
        ],
        left_out=_left_out_values(dataset),
        changed=_changed_settings(record["settings"]),
        uneven=UNEVEN_RATIO,
        folded=FOLDED_ROWS,
        fewest=MIN_CLASS_PHOTOS,
    )
    # A file name that is not valid UTF-8 appears as its bytes.
    path.write_bytes(page.encode("utf-8", "backslashreplace"))


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": "{:.1%}".format, "thousands": "{:,}".format}
    return environment.get_template("report.html.j2")


@dataclass(frozen=True)
class PhotoPrediction:
    """The model's answer for one photo."""

    path: str
    label: str
    predicted: str
    probability: float

    @property
    def correct(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction and its photo."""

    prediction: PhotoPrediction
    thumbnail: Thumbnail


@dataclass(frozen=True)
class NamedNegative:
    """A photo of none of the classes that the model names as a class."""

    path: str
    predicted: str
    known: float
    thumbnail: Thumbnail


def _predictions(
    dataset: Dataset, split: str, probabilities: Mapping[str, NDArray[Any]]
) -> list[PhotoPrediction]:
    return [
        PhotoPrediction(photo.path, photo.label, dataset.classes[row.argmax()], float(row.max()))
        for photo, row in zip(dataset.split(split), probabilities[split], strict=True)
    ]


def _mistakes(dataset: Dataset, predictions: Sequence[PhotoPrediction]) -> list[Mistake]:
    """The wrong predictions with the highest probabilities."""
    wrong = [prediction for prediction in predictions if not prediction.correct]
    wrong.sort(key=lambda prediction: -prediction.probability)
    return [Mistake(prediction, thumbnail(dataset, prediction.path)) for prediction in wrong[:SHOWN_MISTAKES]]


def _negative_values(
    dataset: Dataset,
    metrics: Mapping[str, SplitMetrics | None],
    results: Mapping[str, PictureOutputs],
) -> dict[str, Any] | None:
    """The metrics of the negatives of test, or else of val, as the template needs them; None without any."""
    for split in ("test", "val"):
        measured = metrics[split]
        if measured and (found := measured["negatives"]):
            count = sum(found["per_class"].values())
            defaults = default_rows(dataset)[split]
            are_own = bool((~defaults).any())
            shown = ~defaults if are_own else defaults
            return {
                "split": split,
                "n": found["n"],
                "count": count,
                "share": found["named"],
                "interval": confidence_interval(count, found["n"]),
                "are_own": are_own,
                "default": measured["default_negatives"],
                "per_class": [
                    (name, number, number / found["n"]) for name, number in found["per_class"].items()
                ],
                "named": _named_negatives(dataset, split, results[split], shown, count),
            }
    return None


def _named_negatives(
    dataset: Dataset, split: str, results: PictureOutputs, shown: NDArray[np.bool_], count: int
) -> list[NamedNegative]:
    """The `count` negatives of the mask `shown` [N] with the highest `known`, at most SHOWN_MISTAKES."""
    if results.known is None:
        return []
    photos = dataset.negatives_of(split)
    found = []
    order = [row for row in np.argsort(-results.known, kind="stable").tolist() if shown[row]]
    for row in order[: min(count, SHOWN_MISTAKES)]:
        path, predicted = photos[row].path, dataset.classes[results.probabilities[row].argmax()]
        known = float(results.known[row])
        found.append(NamedNegative(shown_path(dataset, path), predicted, known, thumbnail(dataset, path)))
    return found


def _added_values(dataset: Dataset, added: Sequence[AddedAnswer]) -> dict[str, Any] | None:
    """The results for the photos of --add as the template needs them; None without any."""
    if not added:
        return None
    counts = {item.photo.label: [0, 0] for item in added}  # photos with the right answer, and all photos
    for item in added:
        counts[item.photo.label][0] += item.right
        counts[item.photo.label][1] += 1
    wrong = [item for item in added if not item.right]
    return {
        "count": len(added),
        "right": len(added) - len(wrong),
        "labels": [(label, right, count, right / count) for label, (right, count) in counts.items()],
        "wrong": [
            (item, shown_path(dataset, item.photo.path), thumbnail(dataset, item.photo.path))
            for item in wrong[:SHOWN_MISTAKES]
        ],
    }


def _suspect_values(dataset: Dataset, suspects: Sequence[SuspectLabel]) -> dict[str, Any]:
    """The suspect labels as the template needs them."""
    confident = [suspect for suspect in suspects if suspect.confident]
    photos = dataset.split("train")
    judged = judged_labels(photos)
    return {
        "count": len(confident),
        "shown": [
            (suspect, shown_path(dataset, suspect.photo.path), thumbnail(dataset, suspect.photo.path))
            for suspect in confident[:SHOWN_SUSPECTS]
        ],
        "disagreeing": len(suspects),
        "photos": len(photos),
        "judged": sum(photo.label in judged for photo in photos),
        "fewest": MIN_JUDGED_PHOTOS,
    }


def _pictured_pairs(dataset: Dataset, pairs: Sequence[Pair]) -> list[tuple[tuple[str, str, Thumbnail], ...]]:
    """Path, split and thumbnail of both photos of the first pairs."""
    return [
        tuple(
            (shown_path(dataset, photo.path), photo.split, thumbnail(dataset, photo.path))
            for photo in (pair.photo, pair.other)
        )
        for pair in pairs[:SHOWN_PAIRS]
    ]


def _split_values(split: str, metrics: SplitMetrics, dataset: Dataset) -> dict[str, Any]:
    """The metrics of a split as the template needs them."""
    classes = dataset.classes
    counts = np.array(metrics["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    pairs = [divmod(int(place), len(classes)) for place in largest]
    rows = [(name, row["n"], row["precision"], row["recall"]) for name, row in metrics["per_class"].items()]
    small = len(classes) <= TABLE_CLASSES
    return {
        "split": split,
        **metrics,
        "interval": confidence_interval(round(metrics["top1"] * metrics["n"]), metrics["n"]),
        "per_class": [(*row, _f1(*row[2:])) for row in rows],
        "hardest": min((row for row in rows if row[3] is not None), key=lambda row: row[3] or 0.0),
        "unmeasured": [row[0] for row in rows if row[3] is None],
        "confusion": [
            (name, list(zip(row, share, strict=True)))
            for name, row, share in zip(classes, counts.tolist(), shares.tolist(), strict=True)
            if small
        ],
        "heat": "" if small else data_uri(confusion_picture(shares), "png"),
        "confused": [
            (int(wrong[row, column]), int(counts[row].sum()), classes[row], classes[column])
            for row, column in pairs
            if wrong[row, column]
        ],
    }


def _f1(precision: float | None, recall: float | None) -> float | None:
    if recall is None:  # the class has no photo
        return None
    precision = precision or 0.0  # the class was never predicted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _reliability(predictions: Sequence[PhotoPrediction]) -> Markup | None:
    if not predictions:
        return None
    probabilities = np.array([prediction.probability for prediction in predictions])
    bins = reliability(probabilities, np.array([prediction.correct for prediction in predictions]))
    text = "; ".join(f"probability {mean:.0%}, {correct:.0%} correct" for _, mean, correct in bins)
    return Markup(reliability_diagram(bins, len(predictions), f"Reliability diagram. {text}"))


def _curve(stage: str, rows: Rows, name: str, mark_best: bool) -> Markup:
    text = "; ".join(
        f"{split} from {rows[0][column]:.3f} to {rows[-1][column]:.3f}"
        for split, column in (("train", name), ("val", f"val_{name}"))
        if column in rows[0]
    )
    alt = f"{CURVES[name]} of {stage} over {len(rows)} epochs: {text}"
    return Markup(curve(rows, name, alt, mark_best=mark_best))


def discarded_stage(record: Mapping[str, Any]) -> str:
    """The stage of fine-tuning that did not lower the loss on val, so that the run holds the weights from
    before it; an empty text for other runs, and for older ones, whose run.json does not say it.
    """
    return str(record["settings"]["fine_tune"]) if record.get("fine_tuning_discarded") else ""


def _unfinished(record: Mapping[str, Any], stages: Sequence[tuple[str, Rows]]) -> str:
    """The stage that Ctrl-C stopped, and its epochs; an empty text for a finished run."""
    settings, compressed = record["settings"], record.get("compressed")
    done = {stage: len(rows) for stage, rows in stages}
    planned = {"head": settings["epochs"]}
    if compressed:
        planned["distill"] = compressed["epochs"]
    elif settings["fine_tune"] != "none":
        planned[settings["fine_tune"]] = settings["fine_tune_epochs"]
    for stage, epochs in planned.items():
        if done.get(stage, 0) < epochs:
            return f"{stage} was stopped after {done.get(stage, 0)} of {epochs} epochs"
    return ""


def _left_out_values(dataset: Dataset) -> list[LeftOut]:
    """The first files that were left out, without folders above the data set's."""
    return [
        replace(item, path=shown_path(dataset, item.path), reason=shown_reason(dataset, item.reason))
        for item in dataset.left_out[:LISTED_FILES]
    ]


def _photo_counts(dataset: Dataset) -> list[tuple[str, list[int]]]:
    """For each class, the number of its photos in each split."""
    counts = Counter((photo.label, photo.split) for photo in dataset.photos)
    return [(name, [counts[name, split] for split in SPLITS]) for name in dataset.classes]


def _changed_settings(settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Flag, value and default of the settings that differ from the recipe."""
    defaults = asdict(RECIPES[settings["recipe"]])
    return [
        (f"--{name.replace('_', '-')}", settings[name], default)
        for name, default in defaults.items()
        if settings.get(name, default) != default
    ]
