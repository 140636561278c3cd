"""A run's report: one HTML page that needs nothing beside it, for whoever took the photos.

The page itself, words and looks, is report.html.j2; here is what fills it. Jinja escapes whatever comes from
the user's folders, and a policy in the page keeps a browser from loading anything.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from runtime.common.errors import PictureError
from runtime.preprocess.picture import read_picture
from train.data.class_weights import UNEVEN_RATIO
from train.data.dataset import SPLITS, Dataset
from train.data.near_duplicates import Pair
from train.metrics import SplitMetrics, confidence_interval
from train.network.calibration import reliability
from train.report.charts import CURVES, confusion_picture, curve, reliability_diagram
from train.settings import RECIPES

MISTAKES = 12  # pictures, about 80 kB
THUMBNAIL = 160  # pixels a side
CONFUSED = 10  # pairs of classes
LEFT_OUT = 100  # lines, of near-duplicates as well; the .csv beside the page has all
TABLE_CLASSES = 25  # of more, the confusion matrix is a picture
FOLDED_ROWS = 30  # a longer table is shown when asked for

Rows = Sequence[Mapping[str, Any]]


def write_report(
    path: Path,
    record: Mapping[str, Any],
    dataset: Dataset,
    history: Rows,
    metrics: Mapping[str, SplitMetrics | None],
    probabilities: Mapping[str, NDArray[Any]],
    alike: Sequence[Pair] = (),
) -> None:
    """Write the page to `path`.

    `record` is what run.json holds, `history` a row an epoch with its `stage`; `metrics` and `probabilities`
    [N, C] are of val and test, in the order of the data set's photos; `alike` are the near-duplicates found.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": "{:.1%}".format, "thousands": "{:,}".format}
    stages = [(str(stage), list(rows)) for stage, rows in groupby(history, lambda row: row["stage"])]
    measured = [_measured(split, of, dataset) for split in ("test", "val") if (of := metrics[split])]
    answers = _answers(dataset, measured[0]["split"], probabilities) if measured else []
    page = environment.get_template("report.html.j2").render(
        record=record,
        created=datetime.fromisoformat(record["created"]),
        dataset=dataset,
        unfinished=_unfinished(record, stages),
        measured=measured,
        blind=math.log(len(dataset.classes)),
        answers=answers,
        mistakes=_mistakes(dataset, answers),
        reliability=_reliability(answers),
        stages=[(stage, [_curve(stage, rows, name) for name in CURVES]) for stage, rows in stages],
        splits=SPLITS,
        classes=_photos(dataset),
        alike=alike,
        left_out=dataset.left_out[:LEFT_OUT],
        most=LEFT_OUT,
        changed=_changed(record["settings"]),
        uneven=UNEVEN_RATIO,
        folded=FOLDED_ROWS,
    )
    # A file name that is no UTF-8 is shown by its bytes.
    path.write_bytes(page.encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class PhotoPrediction:
    """What the model says of one photo."""

    path: str
    label: str
    named: str
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.named


@dataclass(frozen=True)
class Mistake:
    """A wrong answer and its photo as a data: URI, or why there is none."""

    answer: PhotoPrediction
    picture: str
    missing: str


def _answers(
    dataset: Dataset, split: str, probabilities: Mapping[str, NDArray[Any]]
) -> list[PhotoPrediction]:
    return [
        PhotoPrediction(photo.path, photo.label, dataset.classes[row.argmax()], float(row.max()))
        for photo, row in zip(dataset.split(split), probabilities[split], strict=True)
    ]


def _mistakes(dataset: Dataset, answers: Sequence[PhotoPrediction]) -> list[Mistake]:
    """The wrong answers that the model was surest of."""
    wrong = sorted((answer for answer in answers if not answer.right), key=lambda wrong: -wrong.probability)
    found = []
    for answer in wrong[:MISTAKES]:
        file = dataset.root / answer.path
        try:
            found.append(Mistake(answer, _thumbnail(file), ""))
        except PictureError as error:  # it was read before, but may be gone by now
            found.append(Mistake(answer, "", str(error).removeprefix(f"{file}: ")))
    return found


def _thumbnail(file: Path) -> str:
    return _data_uri(Image.fromarray(read_picture(file, (THUMBNAIL, THUMBNAIL))), "jpeg")


def _data_uri(picture: Image.Image, kind: str) -> str:
    data = io.BytesIO()
    picture.save(data, kind, quality=80, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _measured(split: str, figures: SplitMetrics, dataset: Dataset) -> dict[str, Any]:
    """A split's figures as the page tells them."""
    classes = dataset.classes
    counts = np.array(figures["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
    pairs = [divmod(int(place), len(classes)) for place in worst]
    rows = [(name, of["n"], of["precision"], of["recall"]) for name, of in figures["per_class"].items()]
    return {
        "split": split,
        **figures,
        "interval": confidence_interval(round(figures["top1"] * figures["n"]), figures["n"]),
        "per_class": [(*row, _f1(*row[2:])) for row in rows],
        "hardest": min((row for row in rows if row[3] is not None), key=lambda row: row[3] or 0.0),
        "confusion": [
            (name, list(zip(row, share, strict=True)))
            for name, row, share in zip(classes, counts.tolist(), shares.tolist(), strict=True)
        ]
        if len(classes) <= TABLE_CLASSES
        else [],
        "heat": "" if len(classes) <= TABLE_CLASSES else _data_uri(confusion_picture(shares), "png"),
        "confused": [
            (int(wrong[row, column]), int(counts[row].sum()), classes[row], classes[column])
            for row, column in pairs
            if wrong[row, column]
        ],
    }


def _f1(precision: float | None, recall: float | None) -> float | None:
    if recall is None:  # no photo of this class to find
        return None
    precision = precision or 0.0  # never named
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _reliability(answers: Sequence[PhotoPrediction]) -> Markup | None:
    if not answers:
        return None
    sure = np.array([answer.probability for answer in answers])
    bins = reliability(sure, np.array([answer.right for answer in answers]))
    told = "; ".join(f"{sure:.0%} sure, {right:.0%} right" for _, sure, right in bins)
    return Markup(reliability_diagram(bins, len(answers), f"Reliability diagram. {told}"))


def _curve(stage: str, rows: Rows, name: str) -> Markup:
    told = "; ".join(
        f"{split} from {rows[0][column]:.3f} to {rows[-1][column]:.3f}"
        for split, column in (("train", name), ("val", f"val_{name}"))
        if column in rows[0]
    )
    return Markup(curve(rows, name, f"{CURVES[name]} of {stage} over {len(rows)} epochs: {told}"))


def _unfinished(record: Mapping[str, Any], stages: Sequence[tuple[str, Rows]]) -> str:
    """What Ctrl-C cut short, if anything."""
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


def _photos(dataset: Dataset) -> list[tuple[str, list[int]]]:
    """By class: how many photos of it each split has."""
    counts = Counter((photo.label, photo.split) for photo in dataset.photos)
    return [(name, [counts[name, split] for split in SPLITS]) for name in dataset.classes]


def _changed(settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Flag, value and the recipe's own value, of the settings that are not the recipe's."""
    own = asdict(RECIPES[settings["recipe"]])
    return [
        (f"--{name.replace('_', '-')}", settings[name], value)
        for name, value in own.items()
        if settings.get(name, value) != value
    ]
