"""The photos of a data set with their labels, splits and hashes."""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.common.errors import PictureError, UserError
from runtime.common.text import printable
from runtime.preprocess.decode import read_bytes
from runtime.preprocess.photo_files import NONE_LABEL

SPLITS = ("train", "val", "test")
HASH_BLOCK = 1 << 20  # bytes read at a time


class PhotosError(UserError):
    """A folder that cannot be trained on, or photos that differ from those that a run recorded."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))  # a file name may contain control characters


class ChangedError(PictureError):
    """A photo whose bytes have changed since they were hashed."""


class HashError(Exception):
    """A file that cannot be hashed; the text is the reason."""


@dataclass(frozen=True)
class Photo:
    """One photo. `path` is relative to the data set's root, or absolute for a photo outside the root, with
    forward slashes; `sha256` is the hash of the file's bytes.
    """

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A file or folder under the root that is not used, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The photos under `root`, each in one split. `synthetic` marks drawn pictures.

    `negatives` are photos of none of the classes, with the label NONE_LABEL and a split each. They are under
    `root`, under `negatives_root`, or in the default set (train/data/negatives.py). Photos and negatives
    under `added_root` are those of --add; all are in train.
    """

    root: Path
    classes: tuple[str, ...]
    photos: tuple[Photo, ...]
    left_out: tuple[LeftOut, ...] = ()
    synthetic: bool = False
    negatives: tuple[Photo, ...] = ()
    negatives_root: Path | None = None  # absolute; None if no negative is in a folder outside `root`
    added_root: Path | None = None  # absolute; None without --add

    def split(self, name: str) -> tuple[Photo, ...]:
        """The photos of the split `name`, train, val or test, without the negatives."""
        return tuple(photo for photo in self.photos if photo.split == name)

    def negatives_of(self, split: str) -> tuple[Photo, ...]:
        """The negatives of a split: train, val or test."""
        return tuple(photo for photo in self.negatives if photo.split == split)

    @property
    def added(self) -> tuple[Photo, ...]:
        """The photos and then the negatives of --add."""
        return tuple(photo for photo in (*self.photos, *self.negatives) if self.is_added(photo))

    def is_added(self, photo: Photo) -> bool:
        """Whether the photo or negative comes from --add, and not from a folder of --none inside it."""
        path = Path(photo.path)
        return (
            self.added_root is not None
            and photo.split == "train"
            and path.is_relative_to(self.added_root)
            and not (self.negatives_root and path.is_relative_to(self.negatives_root))
        )

    @property
    def sha256(self) -> str:
        """A hash of the split, label and bytes of every photo and negative. File names and folders do not
        change it.
        """
        photos = (*self.photos, *self.negatives)
        lines = sorted(f"{photo.split}\t{photo.label}\t{photo.sha256}\n" for photo in photos)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def without(self, left_out: Iterable[LeftOut]) -> Dataset:
        """This data set without the photos and negatives in `left_out`. Raises PhotosError as `validated`."""
        removed = {item.path: item for item in left_out}
        photos = tuple(photo for photo in self.photos if photo.path not in removed)
        negatives = tuple(photo for photo in self.negatives if photo.path not in removed)
        all_left_out = sorted([*self.left_out, *removed.values()], key=lambda item: item.path)
        return validated(replace(self, photos=photos, negatives=negatives, left_out=tuple(all_left_out)))


def validated(dataset: Dataset) -> Dataset:
    """The data set itself, if a classifier can be trained on it; otherwise raises PhotosError."""
    if len(dataset.classes) < 2:
        hint = f" ({NONE_LABEL} is not a class: rename its folder if it is)" if dataset.negatives else ""
        remedy = "put the photos of each class into a folder with the name of the class"
        if inside := _only_folder(dataset):
            remedy += f"; if the folders in {inside.name} are the classes, give {inside}"
        raise PhotosError(
            f"{dataset.root}: found {', '.join(dataset.classes) or 'no class'}, but training needs at least "
            f"2 classes{hint}; {remedy}"
        )
    train = Counter(photo.label for photo in dataset.split("train"))
    for label in dataset.classes:
        if not train[label]:
            why = _why_left_out(dataset, label)
            raise PhotosError(f"{dataset.root}: class {label} has no readable training photo{why}; add some")
    for photo in dataset.photos:
        if photo.label not in dataset.classes:
            raise PhotosError(
                f"{dataset.root}: class {photo.label} is in {photo.split}/ but not in train/; add training "
                f"photos of it or remove it from {photo.split}/"
            )
    return dataset


def _only_folder(dataset: Dataset) -> Path | None:
    """The folder under the root that holds all photos, such as that of an archive, if several of its folders
    hold photos.
    """
    folders = {Path(photo.path).parts[:-1] for photo in dataset.photos}
    tops, subfolders = {parts[:1] for parts in folders}, {parts[1:2] for parts in folders if parts[1:]}
    if len(tops) != 1 or len(subfolders) < 2:
        return None
    return dataset.root.joinpath(*tops.pop())


def _why_left_out(dataset: Dataset, label: str) -> str:
    """How many photos of a class are not used, and why one of them is not."""
    found = [item for item in dataset.left_out if label in Path(item.path).parts[:-1]]
    return f": {len(found):,} left out, such as {found[0].path}: {found[0].reason}" if found else ""


def read_verified(dataset: Dataset, photo: Photo) -> bytes:
    """The bytes of the photo's file. Raises PhotosError if it is missing or has another hash."""
    path = Path(dataset.root) / photo.path
    outside = "give --add" if dataset.is_added(photo) else "give --none"
    remedy = outside if Path(photo.path).is_absolute() else "give --photos-root"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PhotosError(
            f"{path}: {error.strerror or error}; restore the photos, {remedy}, or train again"
        ) from None
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise PhotosError(f"{path}: has changed since the run was trained; restore it or train again")
    return data


def read_hashed(root: Path, photo: Photo, data: bytes | None = None) -> bytes:
    """The photo's bytes: `data`, or else the file under `root`.

    Raises ChangedError if their hash is not `photo.sha256`, because results are cached by that hash;
    PictureError if the file cannot be read.
    """
    path = root / photo.path
    if data is None:
        data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise ChangedError(f"{path}: has changed since it was hashed; start the command again")
    return data


def file_sha256(path: Path) -> str:
    """The hex digest of a file's bytes. Raises HashError if the file is empty or cannot be read."""
    digest = hashlib.sha256()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise HashError("is not a regular file")  # opening a pipe would wait for its writer
        if not status.st_size:
            raise HashError("is empty")  # all empty files have the same hash, but are not copies of a photo
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise HashError(error.strerror or str(error)) from None
    return digest.hexdigest()
