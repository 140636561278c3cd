"""Add photos of another folder to the training photos, such as those that a device was taught with.

Val and test stay as they are, so models with and without the added photos are measured on the same photos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from runtime.common.text import printable
from runtime.inference.taught_photos import folder_label
from runtime.model_file.contract import MAX_LABELS
from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import Dataset, LeftOut, Photo, PhotosError, validated
from train.data.find_photos import read_class_folders, without_duplicates

REMEDY = (
    "give --add the folder that python -m runtime.teach --export wrote, or another folder of class folders"
)


def add_photos(dataset: Dataset, folder: Path, negatives: bool = True) -> Dataset:
    """The data set with the photos in the class folders of `folder` in train; prints their numbers.

    Photos in the folder none become negatives, unless `negatives` is false. A label that is not yet a class
    becomes one. A photo that `dataset` has already is left out, so val and test do not change. Raises
    PhotosError if no photo is left to add, or for a label that differs from a class in upper and lower case.
    """
    root = folder.resolve()
    if root.is_relative_to(dataset.root):
        raise PhotosError(f"--add {folder}: is inside {dataset.root}; move it out of this folder")
    found, unusable = read_class_folders(root, "train", REMEDY)
    # The folder a%2Fb of `runtime.teach --export` holds the label a/b.
    found = [replace(photo, label=folder_label(photo.label) or photo.label) for photo in found]
    _check_labels(dataset, {photo.label for photo in found} - {NONE_LABEL}, folder)
    unique, copies = without_duplicates(found)
    added, known, measured = _new_photos(dataset, unique)
    left_out = [*unusable, *copies, *known]
    if not negatives:
        left_out += [
            LeftOut(photo.path, "is not used: --no-negatives is set")
            for photo in added
            if photo.label == NONE_LABEL
        ]
        added = [photo for photo in added if photo.label != NONE_LABEL]
    added = [replace(photo, path=(root / photo.path).as_posix()) for photo in added]
    outside = [replace(item, path=(root / item.path).as_posix()) for item in left_out]
    _print_added(dataset, added, len(outside), measured, folder)
    if not added:
        raise PhotosError(f"--add {folder}: no photo is new; remove --add, or add photos to the folder")
    photos = [photo for photo in added if photo.label != NONE_LABEL]
    of_none = [photo for photo in added if photo.label == NONE_LABEL]
    return validated(
        replace(
            dataset,
            classes=tuple(sorted({*dataset.classes, *(photo.label for photo in photos)})),
            photos=_by_path(*dataset.photos, *photos),
            negatives=_by_path(*dataset.negatives, *of_none),
            left_out=tuple(sorted([*dataset.left_out, *outside], key=lambda item: item.path)),
            added_root=root,
        )
    )


def _check_labels(dataset: Dataset, labels: Iterable[str], folder: Path) -> None:
    """Raise PhotosError for a label that differs from a class in upper and lower case, and for too many."""
    by_lower_case = {name.casefold(): name for name in dataset.classes}
    new = set(labels) - {*dataset.classes}
    for label in sorted(new):
        if other := by_lower_case.get(label.casefold()):
            raise PhotosError(
                f"--add {folder}: {label} differs from the class {other} in upper and lower case; rename the "
                f"folder to {other}"
            )
    if len(new) + len(dataset.classes) > MAX_LABELS:
        raise PhotosError(f"--add {folder}: over {MAX_LABELS:,} classes, the limit of a model; merge some")


def _new_photos(dataset: Dataset, photos: Sequence[Photo]) -> tuple[list[Photo], list[LeftOut], int]:
    """The photos that the data set does not have, the others with the reason, and how many of these are in
    val or test.
    """
    known = {photo.sha256: photo for photo in (*dataset.photos, *dataset.negatives)}
    left_out = []
    measured = 0
    for photo in photos:
        if other := known.get(photo.sha256):
            measured += other.split != "train"
            reason = f"is the same photo as {printable(other.path)} in {other.split}"
            if other.label != photo.label:
                reason += f", which has the label {other.label}; one label is wrong"
            left_out.append(LeftOut(photo.path, reason))
    return [photo for photo in photos if photo.sha256 not in known], left_out, measured


def _print_added(
    dataset: Dataset, added: Sequence[Photo], left_out: int, measured: int, folder: Path
) -> None:
    """Print the number of added photos of each label, and the labels that are not measured. `measured` of
    the `left_out` files are in val or test.
    """
    counts = Counter(photo.label for photo in added)
    new = sorted({*counts} - {*dataset.classes, NONE_LABEL})
    numbers = [
        f"{label} {counts[label]:,}{' (new class)' if label in new else ''}"
        for label in sorted(counts, key=lambda label: (label == NONE_LABEL, label))
    ]
    skipped = f"; {left_out:,} file{'s' if left_out > 1 else ''} left out" if left_out else ""
    if measured:
        skipped += f", {measured:,} of them in val or test already, which measure the model"
    text = f"added: {folder}: {len(added):,} photo{'' if len(added) == 1 else 's'} to train"
    print(printable(f"{text}: {', '.join(numbers)}{skipped}" if numbers else f"{text}{skipped}"))
    measured_labels = {photo.label for photo in dataset.photos if photo.split != "train"}
    if unmeasured := [label for label in new if label not in measured_labels]:
        which = "this class" if len(unmeasured) == 1 else "these classes"
        print(
            f"added: {', '.join(unmeasured)}: no val and test photos, so the accuracy of {which} is not "
            "measured; put some into PHOTOS"
        )


def _by_path(*photos: Photo) -> tuple[Photo, ...]:
    return tuple(sorted(photos, key=lambda photo: photo.path))
