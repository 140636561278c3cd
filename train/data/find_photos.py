"""Find the photos under a folder and take their classes from the folder names.

Two layouts are supported: a folder of class folders, or a folder with train/ and test/ (val/ is optional),
each of which holds class folders. "Train", "valid" and "validation" are accepted too. A missing split is
taken from the training photos.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.common.text import is_name, printable
from runtime.model_file.contract import MAX_LABELS
from runtime.preprocess.photo_files import SUFFIXES
from train.data.dataset import SPLITS, Dataset, HashError, LeftOut, Photo, PhotosError, file_sha256, validated
from train.data.splits import limit_per_class, split_train
from train.data.synthetic import SYNTHETIC_MARKER

# Names of split folders in lower case.
SPLIT_NAMES = {split: split for split in SPLITS} | {"valid": "val", "validation": "val"}
# Files that operating systems create. Names that start with a dot are ignored as well.
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}


def find_photos(
    root: Path,
    *,
    split_seed: int = 0,
    val_share: float = 0.15,
    test_share: float = 0.15,
    limit: int | None = None,
) -> Dataset:
    """Read the folder `root` into a Dataset.

    `limit` is the number of photos per class in each split that has a folder. train/data/splits.py describes
    how photos are assigned to splits. Raises PhotosError if the folder cannot be trained on: a wrong path,
    fewer than two classes, an empty class, a class name that a model file cannot hold, the same photo in two
    split folders.
    """
    root = Path(root)
    _check_is_folder(root)
    split_folders, left_out = _split_folders(root)
    class_folders = {split: _class_folders(folder) for split, folder in split_folders.items()}
    photos: list[Photo] = []
    for split, folder in split_folders.items():
        found, unusable = _read_split(root, folder, class_folders[split], split)
        photos += found
        left_out += unusable
    classes = tuple(sorted({photo.label for photo in photos if photo.split == "train"}))
    photos, duplicates = _without_duplicates(photos)
    left_out += duplicates
    if limit is not None:
        photos = limit_per_class(photos, limit, split_seed)
    shares = {"val": val_share, "test": test_share}
    missing = {split: share for split, share in shares.items() if split not in split_folders}
    photos = sorted(split_train(photos, missing, split_seed), key=lambda photo: photo.path)
    left_out.sort(key=lambda item: item.path)
    synthetic = os.path.exists(root / SYNTHETIC_MARKER)
    return validated(Dataset(root.resolve(), classes, tuple(photos), tuple(left_out), synthetic))


def _check_is_folder(root: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise PhotosError(f"{root}: {reason}; give a folder with one folder of photos per class") from None
    if not is_folder:
        raise PhotosError(f"{root} is a file; give the folder with one folder of photos per class")


def _split_folders(root: Path) -> tuple[dict[str, Path], list[LeftOut]]:
    """The folders of the splits in `root`. Without split folders, `root` itself is the training split.

    A class may be called "train" too: train/ is a split only if it holds folders and no picture.
    """
    by_split: dict[str, list[Path]] = defaultdict(list)
    others: list[Path] = []
    for folder in _subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        (others if split is None else by_split[split]).append(folder)
    train = by_split["train"][0] if "train" in by_split else None
    if train is None or not _subfolders(train) or _holds_pictures(train):
        return {"train": root}, []
    for folders in by_split.values():
        if len(folders) > 1:
            names = " and ".join(f"{folder.name}/" for folder in folders)
            raise PhotosError(f"{root}: {names} are the same split; keep one of them")
    if len(by_split) == 1:
        _check_no_class_folders(root, train, others)
    left_out = [LeftOut(f"{folder.name}/", "is beside train/ but is not val/ or test/") for folder in others]
    return {split: by_split[split][0] for split in SPLITS if split in by_split}, left_out


def _check_no_class_folders(root: Path, train: Path, others: Sequence[Path]) -> None:
    """Raise PhotosError if class folders are beside train/, as after `--capture roses photos/train`."""
    classes = [folder for folder in others if _holds_pictures(folder)]
    if classes:
        names = ", ".join(f"{folder.name}/" for folder in classes[:3]) + (", …" if classes[3:] else "")
        inside = ", ".join(f"{train.name}/{folder.name}" for folder in _subfolders(train)[:3])
        raise PhotosError(
            f"{root}: holds class folders ({names}) and also {inside}; move the photos of {train.name}/ into "
            f"the class folders and remove {train.name}/, or move the class folders into {train.name}/"
        )


def _class_folders(folder: Path) -> list[tuple[Path, str]]:
    """The class folders in `folder` with their labels. Raises PhotosError for a label that a model file
    cannot hold, or that a terminal cannot show.
    """
    found: list[tuple[Path, str]] = []
    for class_folder in _subfolders(folder):
        label = unicodedata.normalize("NFC", class_folder.name)  # macOS writes é as two characters
        if not is_name(label):
            raise PhotosError(
                f"{folder}: the class name {label!r} is too long or not printable; rename the folder"
            )
        found.append((class_folder, label))
    if len({label for _, label in found}) > MAX_LABELS:
        raise PhotosError(f"{folder}: has over {MAX_LABELS:,} classes, the limit of a model; merge some")
    return found


def _read_split(
    root: Path, folder: Path, class_folders: Sequence[tuple[Path, str]], split: str
) -> tuple[list[Photo], list[LeftOut]]:
    """The hashed pictures in the class folders of `folder`, and the files that are not pictures."""
    pictures: list[tuple[Path, str]] = []
    left_out: list[LeftOut] = []
    for class_folder, label in class_folders:
        before = len(pictures)
        for path in _files(class_folder, (root, folder)):
            if _is_picture(path):
                pictures.append((path, label))
            else:
                left_out.append(LeftOut(path.relative_to(root).as_posix(), _not_a_picture(path)))
        if len(pictures) == before:
            raise PhotosError(f"{class_folder}: no photo in this class folder; add some or remove the folder")
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash_or_error, (path for path, _ in pictures)))
    photos: list[Photo] = []
    for (path, label), digest in zip(pictures, hashes, strict=True):
        name = path.relative_to(root).as_posix()
        if isinstance(digest, HashError):
            left_out.append(LeftOut(name, str(digest)))
        else:
            photos.append(Photo(name, label, split, digest))
    if unreadable := {label for _, label in pictures} - {photo.label for photo in photos}:
        raise PhotosError(
            f"{folder}: class {min(unreadable)} has no readable photo; add some or remove its folder"
        )
    return photos, left_out


def _hash_or_error(path: Path) -> str | HashError:
    try:
        return file_sha256(path)
    except HashError as error:
        return error


def _not_a_picture(path: Path) -> str:
    """The reason to leave out a file that has no picture's suffix."""
    try:
        path.stat()
    except OSError as error:  # it may be a folder of photos
        return error.strerror or str(error)
    return "is not a picture by its file name"


def _without_duplicates(photos: list[Photo]) -> tuple[list[Photo], list[LeftOut]]:
    """Each photo once. A photo in two classes is removed from both, because one label is wrong."""
    copies: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        copies[photo.sha256].append(photo)
    unique: list[Photo] = []
    left_out: list[LeftOut] = []
    for first, *others in copies.values():
        for other in others:
            if other.split != first.split:
                raise PhotosError(
                    f"{first.path} and {other.path} are the same photo in two splits, which makes the "
                    "measured accuracy too high; remove one of them"
                )
        labels = {photo.label for photo in (first, *others)}
        if len(labels) > 1:
            reason = f"the same photo is in several classes: {', '.join(sorted(labels))}"
            left_out += [LeftOut(photo.path, reason) for photo in (first, *others)]
        else:
            unique.append(first)
            reason = f"is the same photo as {printable(first.path)}"
            left_out += [LeftOut(other.path, reason) for other in others]
    return unique, left_out


def _visible(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [
        path for path in entries if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES
    ]


def _unreadable(folder: Path, error: OSError) -> PhotosError:
    return PhotosError(f"{folder}: {error.strerror}; make the folder readable, or move it away")


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if os.path.isdir(path)]


def _files(folder: Path, parents: Iterable[Path]) -> Iterator[Path]:
    """Every visible file under `folder`. Links are followed, but each folder is entered once, and none of
    `parents`.
    """
    entered = {_folder_id(path) for path in parents}
    waiting = [folder]  # no recursion: folders may be nested deeper than Python's recursion limit
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            yield path
        elif (folder_id := _folder_id(path)) not in entered:
            entered.add(folder_id)
            waiting += reversed(_visible(path))


def _folder_id(folder: Path) -> tuple[int, int]:
    """Device and inode: the same for every link to the folder."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _holds_pictures(folder: Path) -> bool:
    return any(_is_picture(path) for path in _visible(folder))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not os.path.isdir(path)
