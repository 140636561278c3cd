"""The default negatives: pictures of objects, which train beside the user's photos of none of the classes.

They are written once into the user's cache, so that all other code reads them like photos.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.user_cache import cache_home
from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import SPLITS, Dataset, HashError, Photo, PhotosError, file_sha256
from train.data.negative_pictures import NEGATIVES_VERSION, drawings, make_picture
from train.data.splits import split_train
from train.progress import Progress

DEFAULT_KIND = "composited"  # of negative_pictures.py
# There are as many default negatives as photos within these bounds: each costs the features of a photo.
MIN_NEGATIVES, MAX_NEGATIVES = 300, 1200
SHORTEST_WORD = 3  # letters of a class name that is searched in the names of drawings
PLURALS = {"ies": ("y",), "ves": ("f", "fe"), "es": ("",), "s": ("",)}  # English endings, and the singular's


def default_negatives_folder() -> Path:
    """The folder of the default negatives in the user's cache, which may not exist yet."""
    try:
        return cache_home().absolute() / "negatives"
    except RuntimeError:  # no home folder: a run can still be read
        return Path("/nonexistent/negatives")


def own_negatives(dataset: Dataset) -> tuple[Photo, ...]:
    """The negatives of the user: those that are not in the default set."""
    return tuple(photo for photo in dataset.negatives if not is_default(photo))


def is_default(photo: Photo) -> bool:
    """Whether a negative is in the default set."""
    return Path(photo.path).is_relative_to(default_negatives_folder())


def default_rows(dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """Which negatives are in the default set: by split, a mask [N] in the order of `negatives_of`."""
    return {
        split: np.array([is_default(photo) for photo in dataset.negatives_of(split)], bool)
        for split in SPLITS
    }


def add_default_negatives(
    dataset: Dataset,
    *,
    split_seed: int = 0,
    val_share: float = 0.15,
    test_share: float = 0.15,
    limit: int | None = None,
) -> Dataset:
    """The data set with its own negatives, and with default ones: about as many as photos, or `limit`.

    A drawing whose name contains the name of a class is not used. Raises PhotosError if the drawings are
    missing, or the cache cannot be written.
    """
    names = names_without_classes(dataset.classes)
    if not names:
        raise PhotosError(
            "every default drawing is named like one of the classes; give --none a folder of photos "
            "of none of the classes, or use --no-negatives"
        )
    count = min(max(MIN_NEGATIVES, len(dataset.photos)), MAX_NEGATIVES, limit or MAX_NEGATIVES)
    files = write_pictures([(DEFAULT_KIND, name) for name in names[:count]])
    photos = [Photo(file.as_posix(), NONE_LABEL, "train", _sha256(file)) for file in files]
    negatives = split_train(photos, {"val": val_share, "test": test_share}, split_seed)
    ordered = sorted(negatives, key=lambda photo: photo.path)
    return replace(dataset, negatives=(*dataset.negatives, *ordered))


def restore_default_negatives(dataset: Dataset) -> None:
    """Write the default negatives of a run's data set that this machine's cache lacks.

    Raises PhotosError if this version of the project does not make them, or the cache cannot be written.
    """
    folder = default_negatives_folder()
    wanted: list[tuple[str, str]] = []
    for photo in dataset.negatives:
        if is_default(photo) and not Path(photo.path).exists():
            of_kind, _, name = Path(photo.path).relative_to(folder).as_posix().partition("/")
            kind, name = of_kind.removesuffix(f"-{NEGATIVES_VERSION}"), name.removesuffix(".bmp") + ".webp"
            if of_kind == kind or name not in drawings():
                raise PhotosError(
                    f"{photo.path}: this version makes other default negatives; train the run again"
                )
            wanted.append((kind, name))
    write_pictures(wanted)


def print_negatives(dataset: Dataset) -> None:
    """Print how many photos and how many default drawings each split has, and a hint without photos."""
    own = own_negatives(dataset)
    drawn = tuple(photo for photo in dataset.negatives if is_default(photo))
    hint = "" if own else "; photos of your scene in a folder named none help more"
    for kind, negatives, end in (("photos", own, ""), ("drawings", drawn, hint)):
        if negatives:
            splits = Counter(photo.split for photo in negatives)
            counts = ", ".join(f"{splits[split]:,} {split}" for split in SPLITS)
            print(f"none of the classes: {len(negatives):,} {kind}: {counts}{end}")


def write_pictures(pictures: Sequence[tuple[str, str]]) -> list[Path]:
    """The files in the user's cache of pictures, each a kind and the name of a drawing.

    Missing files are written. Raises PhotosError if they cannot be written.
    """
    folder = default_negatives_folder()
    files = [folder / f"{kind}-{NEGATIVES_VERSION}" / name.removesuffix(".webp") for kind, name in pictures]
    files = [file.with_name(f"{file.name}.bmp") for file in files]
    missing = [index for index, file in enumerate(files) if not file.is_file()]
    if missing:
        with Progress("drawings", len(missing), "pictures") as progress:
            for index in missing:
                try:
                    files[index].parent.mkdir(parents=True, exist_ok=True)
                    with atomic_write(files[index]) as stream:
                        stream.write(make_picture(*pictures[index]))
                except OSError as error:
                    raise PhotosError(
                        f"{folder}: {error.strerror or error}; set XDG_CACHE_HOME to a folder that you may "
                        "write to, or use --none DIR or --no-negatives"
                    ) from None
                progress.step(1)
    return files


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except HashError as error:
        raise PhotosError(f"{file}: {error}; delete this file, then start the command again") from None


def names_without_classes(classes: Sequence[str]) -> list[str]:
    """The drawings whose names contain no word of the class names. Raises PhotosError as `drawings`."""
    words = _class_words(classes)
    return [
        name for name in drawings() if not any(word in name.removesuffix(".webp").lower() for word in words)
    ]


def _class_words(classes: Sequence[str]) -> list[str]:
    """The words of class names in lower case, each with the singulars that it may be the plural of."""
    words = {word for name in classes for word in re.findall(r"[^\W\d_]+", name.lower())}
    for ending, singulars in PLURALS.items():
        words |= {
            word.removesuffix(ending) + singular
            for word in list(words)
            if word.endswith(ending)
            for singular in singulars
        }
    return sorted(word for word in words if len(word) >= SHORTEST_WORD)
