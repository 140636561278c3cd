"""How well a device learns a flower that its model never saw, and corrections of misnamed photos.

    python -m benchmarks.teach new PHOTOS WORK > benchmarks/teach.md
    python -m benchmarks.teach retrain PHOTOS WORK > benchmarks/teach_retrain.md
    python -m benchmarks.teach corrections PHOTOS MODEL RUN
    python -m benchmarks.teach unrelated MODEL NAME=DIR... > benchmarks/teach_unrelated.md

`new`: PHOTOS holds train/ and test/ with class folders, WORK/LABEL/model a model without the class LABEL, as
benchmarks/leave_one_out.py makes them. Each model is taught 20 and 5 photos of train/LABEL, chosen --draws
times. "recall" is the share of test photos of the new class that get its name, "named" the share that get any
name. "others" is the share of test photos of the other classes that are right: their class is the most
probable one, and, "and known", they are not rejected. "unrelated named" is the share of sample pictures of
scikit-image and scikit-learn that get a name. Each is the mean over the draws.

`retrain`: the same photos of the first choice, beside all photos of the other classes, in a full training on
a PC, which is the alternative to teaching. Training keeps a part of these photos for validation. The
uncompressed network is measured, by the label alone. Takes 8 minutes for each class on 2 cores.

`corrections`: teaches MODEL the misnamed photos of the validation split that RUN/photos.csv lists, 20 at
most, and counts the test photos that are right before and after.

`unrelated`: each DIR holds pictures without the classes, such as drawings of one kind. MODEL is taught 20 of
them as a new class, chosen --draws times. "recall" is the share of its other pictures that get the new name.
"others named" is the share of the pictures of all other sets that get any name. "with none": 20 pictures of
these other sets are taught too, as none of the classes, and not counted. The sample pictures of scikit-image
and scikit-learn are one more set. The others in teach_unrelated.md are folders of Debian's packages
tuxpaint-stamps-default and plasma-workspace-wallpapers.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.complete_folder import complete_folder, complete_run
from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from runtime import Classifier
from runtime.inference.learned_fit import TaughtOutputs, fit_learned
from runtime.inference.learned_state import LearnedState
from runtime.preprocess.picture import read_picture

COUNTS = (20, 5)  # photos of the new class
MAX_CORRECTIONS = 20
COLUMNS = (
    "new class", "photos", "recall", "named", "others before", "others after", "and known before",
    "and known after", "unrelated named before", "unrelated named after",
)  # fmt: skip
UNRELATED_COLUMNS = (
    "new class", "pictures", "others named before", "recall", "others named", "recall, with none",
    "others named, with none",
)  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for pictures with labels."""

    labels: NDArray[Any]  # [N]
    probabilities: NDArray[np.float64]  # [N, C]
    known: NDArray[np.float64]  # [N]
    features: NDArray[np.float64]  # [N, D]

    def take(self, chosen: NDArray[Any]) -> Outputs:
        return Outputs(
            self.labels[chosen], self.probabilities[chosen], self.known[chosen], self.features[chosen]
        )

    def without(self, chosen: NDArray[Any]) -> Outputs:
        return self.take(np.setdiff1d(np.arange(len(self.labels)), chosen))

    def joined(self, others: Iterable[Outputs]) -> Outputs:
        parts = [vars(outputs).values() for outputs in (self, *others)]
        return Outputs(*map(np.concatenate, zip(*parts, strict=True)))


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    tasks = parser.add_subparsers(dest="task", required=True)
    new = tasks.add_parser("new", help="teach classes that models never saw")
    new.add_argument("photos", type=Path)
    new.add_argument("work", type=Path)
    new.add_argument("--draws", type=int, default=5, help="random choices of the photos that are taught")
    retrain = tasks.add_parser("retrain", help="train a network with these photos instead")
    retrain.add_argument("photos", type=Path)
    retrain.add_argument("work", type=Path)
    corrections = tasks.add_parser("corrections", help="teach misnamed photos of the validation split")
    for name in ("photos", "model", "run"):
        corrections.add_argument(name, type=Path)
    unrelated = tasks.add_parser("unrelated", help="teach pictures of other things as a new class")
    unrelated.add_argument("model", type=Path)
    unrelated.add_argument("sets", nargs="+", metavar="NAME=DIR")
    unrelated.add_argument("--draws", type=int, default=5, help="random choices of the pictures")
    arguments = parser.parse_args()
    print(f"Measured on {describe_machine()}.\n")
    if arguments.task == "new":
        print_new(arguments.photos, arguments.work, arguments.draws)
    elif arguments.task == "retrain":
        print_retrained(arguments.photos, arguments.work)
    elif arguments.task == "unrelated":
        print_unrelated(arguments.model, arguments.sets, arguments.draws)
    else:
        print_corrections(arguments.photos, arguments.model, arguments.run)
    return 0


def print_new(photos: Path, work: Path, draws: int) -> None:
    rows = []
    for model in sorted(work.glob("*/model")):
        label = model.parent.name
        classifier = Classifier(model, correction="none", learned="none")
        train = photo_outputs(classifier, (photos / "train" / label).iterdir())
        test = photo_outputs(classifier, (photos / "test").glob("*/*"))
        unrelated = unrelated_outputs(classifier)
        for count in COUNTS:
            draw = [measure(classifier, label, train, test, unrelated, count, seed) for seed in range(draws)]
            rows.append((label, count, *np.mean(draw, axis=0).tolist()))
    for count in COUNTS:
        rows.append(("mean", count, *np.mean([row[2:] for row in rows if row[1] == count], axis=0).tolist()))
    print(table_head(*COLUMNS))
    for name, count, *values in rows:
        print(table_row(name, str(count), *(f"{value:.1%}" for value in values)))


def measure(
    classifier: Classifier,
    label: str,
    train: Outputs,  # of the new class
    test: Outputs,
    unrelated: Outputs,
    count: int,
    seed: int,
) -> Sequence[float]:
    """Returns the shares of a row of the table."""
    state = fit(classifier, train.take(choose(len(train.labels), count, seed)))
    new, others = test.take(test.labels == label), test.take(test.labels != label)
    names, known = answer(classifier, state, new)
    recall, named = float(((names == label) & known).mean()), float(known.mean())
    shares = [recall, named]
    for both in (False, True):
        for learned in (None, state):
            names, known = answer(classifier, learned, others)
            shares.append(float(((names == others.labels) & (known | (not both))).mean()))
    return [*shares, *(float(answer(classifier, learned, unrelated)[1].mean()) for learned in (None, state))]


def print_retrained(photos: Path, work: Path) -> None:
    rows = []
    for model in sorted(work.glob("*/model")):
        label = model.parent.name
        for count in COUNTS:
            with redirect_stdout(sys.stderr):
                run = train_with(photos, model.parent, label, count)
            classes = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["per_class"]
            others = [found["recall"] for name, found in classes.items() if name != label]
            rows.append((label, count, classes[label]["recall"], float(np.mean(others))))
    for count in COUNTS:
        rows.append(("mean", count, *np.mean([row[2:] for row in rows if row[1] == count], axis=0).tolist()))
    print(table_head("new class", "photos", "recall", "others right"))
    for name, count, recall, right in rows:
        print(table_row(name, str(count), f"{recall:.1%}", f"{right:.1%}"))


def train_with(photos: Path, work: Path, label: str, count: int) -> Path:
    """Train on the photos of the other classes and `count` photos of this class.

    Returns the run folder; an existing one is kept.
    """
    from benchmarks.leave_one_out import TRAIN_FLAGS  # here, because it loads TensorFlow
    from train.__main__ import main as train_network

    def copy(partial: Path) -> None:
        shutil.copytree(work / "photos", partial)
        shutil.copytree(photos / "test" / label, partial / "test" / label)
        (partial / "train" / label).mkdir()
        paths = sorted((photos / "train" / label).iterdir())
        for row in choose(len(paths), count, seed=0):
            shutil.copy(paths[row], partial / "train" / label)

    folder = complete_folder(work / f"photos-{count}", copy)
    return complete_run(work / f"run-{count}", train_network, str(folder), *TRAIN_FLAGS)


def choose(total: int, count: int, seed: int) -> NDArray[np.intp]:
    """The rows of the photos that are taught."""
    return np.random.default_rng(seed).choice(total, count, replace=False)


def print_corrections(photos: Path, model: Path, run: Path) -> None:
    with (run / "photos.csv").open(newline="", encoding="utf-8") as file:
        split = {row["path"]: row["split"] for row in csv.DictReader(file)}
    classifier = Classifier(model, correction="none", learned="none")
    paths = sorted(path for path in photos.glob("*/*/*") if split.get(key_of(path)) == "val")
    val, test = photo_outputs(classifier, paths), photo_outputs(classifier, (photos / "test").glob("*/*"))
    names, known = answer(classifier, None, val)
    wrong = np.flatnonzero((names != val.labels) | ~known)[:MAX_CORRECTIONS]
    state = fit(classifier, val.take(wrong))
    rows = (("corrected", val.take(wrong)), ("test", test))
    print(table_head("photos", "n", "right before", "right after"))
    for name, outputs in rows:
        shares = []
        for learned in (None, state):
            names, known = answer(classifier, learned, outputs)
            shares.append(f"{((names == outputs.labels) & known).mean():.1%}")
        print(table_row(name, str(len(outputs.labels)), *shares))


def print_unrelated(model: Path, sets: Sequence[str], draws: int) -> None:
    from benchmarks.known import folder_pictures  # here, because it loads TensorFlow

    classifier = Classifier(model, correction="none", learned="none")
    size = classifier.model.contract.input_size
    outputs = {"samples": unrelated_outputs(classifier)}
    for name, folder in (item.split("=", 1) for item in sets):
        pictures = folder_pictures(Path(folder), size)
        outputs[name] = picture_outputs(classifier, ["none"] * len(pictures), pictures)
    rows = []
    for name in outputs:
        draw = [measure_unrelated(classifier, name, outputs, seed) for seed in range(draws)]
        rows.append((name, str(len(outputs[name].labels)), np.mean(draw, axis=0).tolist()))
    rows.append(("mean", "", np.mean([shares for _, _, shares in rows], axis=0).tolist()))
    print(table_head(*UNRELATED_COLUMNS))
    for name, count, shares in rows:
        print(table_row(name, count, *(f"{share:.1%}" for share in shares)))


def measure_unrelated(
    classifier: Classifier, label: str, sets: dict[str, Outputs], seed: int
) -> Sequence[float]:
    """Returns the shares of a row of the table."""
    pictures = sets[label]
    first, *more = (found for name, found in sets.items() if name != label)
    others = first.joined(more)
    new, none = (choose(len(found.labels), COUNTS[0], seed) for found in (pictures, others))
    taught = replace(pictures.take(new), labels=np.full(len(new), label))
    shares = [float(answer(classifier, None, others.without(none))[1].mean())]
    for photos in (taught, taught.joined([others.take(none)])):
        state = fit(classifier, photos)
        names, known = answer(classifier, state, pictures.without(new))
        shares.append(float(((names == label) & known).mean()))
        shares.append(float(answer(classifier, state, others.without(none))[1].mean()))
    return shares


def key_of(path: Path) -> str:
    """The path of a photo in photos.csv."""
    return "/".join(path.parts[-3:])


def fit(classifier: Classifier, taught: Outputs) -> LearnedState:
    model = classifier.model
    ids = [f"{at}.jpg" for at in range(len(taught.labels))]
    outputs = TaughtOutputs(ids, taught.labels.tolist(), taught.probabilities, taught.known, taught.features)
    return fit_learned(model.contract, model.read_statistics(), outputs).state


def answer(
    classifier: Classifier, state: LearnedState | None, outputs: Outputs
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The most probable label [N] of each picture, and whether it is known [N]."""
    probabilities: NDArray[Any] = outputs.probabilities
    known: NDArray[np.float64] | None = outputs.known
    labels = classifier.model.contract.labels
    if state is not None:
        labels = state.labels
        probabilities, known = state.apply(probabilities, known, outputs.features)
    assert known is not None
    return np.array(labels)[probabilities.argmax(1)], known >= classifier.model.contract.thresholds["known"]


def photo_outputs(classifier: Classifier, paths: Iterable[Path]) -> Outputs:
    """The model's outputs for photos, whose folders are their labels."""
    found = sorted(paths)
    size = classifier.model.contract.input_size
    return picture_outputs(
        classifier, [path.parent.name for path in found], (read_picture(path, size) for path in found)
    )


def unrelated_outputs(classifier: Classifier) -> Outputs:
    from benchmarks.known import unrelated_pictures

    pictures = unrelated_pictures(classifier.model.contract.input_size)
    return picture_outputs(classifier, ["none"] * len(pictures), pictures)


def picture_outputs(
    classifier: Classifier, labels: Sequence[str], pictures: Iterable[NDArray[np.uint8]]
) -> Outputs:
    outputs = [classifier.infer_uncorrected(picture) for picture in pictures]
    return Outputs(
        np.array(labels),
        np.array([output.probabilities for output in outputs], np.float64),
        np.array([output.known for output in outputs], np.float64),
        np.array([output.features for output in outputs], np.float64),
    )


if __name__ == "__main__":
    sys.exit(main())
