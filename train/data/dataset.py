"""Find the photos under a folder, tell their classes from the folders' names, and split them.

Two layouts are read: a folder of class folders, or one that holds train/ and test/ (val/ optional), each a
folder of class folders; "Train", "valid" and "validation" are understood too. A split that is not given is
cut from the training photos.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.common.errors import PictureError, UserError
from runtime.common.text import is_name, printable
from runtime.model_file.contract import MAX_LABELS
from runtime.preprocess.decode import read_bytes
from runtime.preprocess.photo_files import SUFFIXES
from train.data.synthetic import SYNTHETIC_MARKER

SPLITS = ("train", "val", "test")
# What their folders are called, in any case.
SPLIT_NAMES = {split: split for split in SPLITS} | {"valid": "val", "validation": "val"}
# What operating systems leave in folders; names that start with a dot are passed over as well.
LITTER = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}
NAMES = "surrogateescape"  # on Linux a file's name is any bytes: those that are no UTF-8 are kept as they are


class PhotosError(UserError):
    """A folder that cannot be trained on, or photos that are not those which a run recorded."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))  # names of files come from anywhere


class ChangedError(PictureError):
    """A photo whose bytes are no longer those that were hashed."""


@dataclass(frozen=True)
class Photo:
    """One photo: `path` is relative to the data set's root, with forward slashes; `sha256` is of the
    file's bytes.
    """

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A file under the root that is not trained on, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The photos under `root`, each in one split. `synthetic` marks pictures that are drawn, not taken."""

    root: Path
    classes: tuple[str, ...]
    photos: tuple[Photo, ...]
    left_out: tuple[LeftOut, ...] = ()
    synthetic: bool = False

    def split(self, name: str) -> tuple[Photo, ...]:
        """The photos of the split `name`: train, val or test."""
        return tuple(photo for photo in self.photos if photo.split == name)

    @property
    def sha256(self) -> str:
        """One digest of every photo's split, label and bytes; where the files lie and what they are called
        is no part.
        """
        lines = sorted(f"{photo.split}\t{photo.label}\t{photo.sha256}\n" for photo in self.photos)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def without(self, left_out: Iterable[LeftOut]) -> Dataset:
        """This data set less the photos named, which turned out not to be readable."""
        gone = {item.path: item for item in left_out}
        photos = tuple(photo for photo in self.photos if photo.path not in gone)
        whole = sorted([*self.left_out, *gone.values()], key=lambda item: item.path)
        return checked(replace(self, photos=photos, left_out=tuple(whole)))


def find_photos(
    root: Path,
    *,
    split_seed: int = 0,
    val_share: float = 0.15,
    test_share: float = 0.15,
    limit: int | None = None,
) -> Dataset:
    """Read the folder `root` into a Dataset.

    A photo's place in a split that is not given depends on `split_seed` and its own bytes alone, so that
    adding photos moves none of the others. `limit` keeps that many photos a class of each split that is
    given, chosen the same way. Raises PhotosError for a folder that cannot be trained on: a wrong path, fewer
    than two classes, an empty class, one whose name no model can carry, the same photo in two given splits.
    """
    root = Path(root)
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise PhotosError(
            f"{root}: {reason}; give a folder that holds one folder of photos a class"
        ) from None
    if not is_folder:
        raise PhotosError(f"{root} is a file; give the folder that holds one folder of photos a class")
    given, left_out = _given_splits(root)
    labelled = {split: _class_folders(folder) for split, folder in given.items()}
    photos: list[Photo] = []
    for split, folder in given.items():
        found, unfit = _read_split(root, folder, labelled[split], split)
        photos += found
        left_out += unfit
    classes = tuple(sorted({photo.label for photo in photos if photo.split == "train"}))
    photos, unfit = _one_of_each(photos)
    left_out += unfit
    if limit is not None:
        photos = _limited(photos, limit, split_seed)
    cut = {"val": val_share, "test": test_share}
    for split in given:
        cut.pop(split, None)
    photos = _cut_from_train(photos, cut, split_seed)
    photos.sort(key=lambda photo: photo.path)
    left_out.sort(key=lambda item: item.path)
    synthetic = os.path.exists(root / SYNTHETIC_MARKER)
    return checked(Dataset(root.resolve(), classes, tuple(photos), tuple(left_out), synthetic))


def checked(dataset: Dataset) -> Dataset:
    """The data set itself when a classifier can be trained on it; raises PhotosError when not."""
    if len(dataset.classes) < 2:
        raise PhotosError(
            f"{dataset.root}: holds {', '.join(dataset.classes) or 'no class'}, and 2 are needed at least; "
            "put each class's photos in a folder of its own"
        )
    train = Counter(photo.label for photo in dataset.split("train"))
    for label in dataset.classes:
        if not train[label]:
            raise PhotosError(f"{dataset.root}: class {label} has no readable photo to train on; add some")
    for photo in dataset.photos:
        if photo.label not in dataset.classes:
            raise PhotosError(f"{dataset.root}: class {photo.label} is in {photo.split}/ but not in train/")
    return dataset


def write_manifest(dataset: Dataset, folder: Path) -> None:
    """Write photos.csv (path, label, split, sha256) and left_out.csv (path, reason) into `folder`."""
    photos = ((photo.path, photo.label, photo.split, photo.sha256) for photo in dataset.photos)
    write_table(folder / "photos.csv", ("path", "label", "split", "sha256"), photos)
    left_out = ((item.path, item.reason) for item in dataset.left_out)
    write_table(folder / "left_out.csv", ("path", "reason"), left_out)


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV whose lines end in "\\n", and whose texts read back whatever is in them."""
    with file.open("w", newline="", encoding="utf-8", errors=NAMES) as stream:
        for row in (columns, *rows):
            line = io.StringIO(newline="")
            # Python's csv may quote "\r" in a name only where it is part of the line's end.
            csv.writer(line, lineterminator="\r\n").writerow(row)
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")


def read_manifest(folder: Path, root: Path, classes: tuple[str, ...], synthetic: bool = False) -> Dataset:
    """The data set that write_manifest wrote into `folder`, its photos lying under `root`.

    Raises OSError, ValueError, TypeError or csv.Error when it did not.
    """
    with (folder / "photos.csv").open(newline="", encoding="utf-8", errors=NAMES) as file:
        rows = list(csv.DictReader(file))
    if any(None in row.values() for row in rows):
        raise ValueError("a line of photos.csv is cut short")
    photos = tuple(Photo(**row) for row in rows)
    with (folder / "left_out.csv").open(newline="", encoding="utf-8", errors=NAMES) as file:
        left_out = tuple(LeftOut(**row) for row in csv.DictReader(file))
    return Dataset(root, classes, photos, left_out, synthetic)


def read_verified(dataset: Dataset, photo: Photo) -> bytes:
    """The photo's file. Raises PhotosError when it is missing, or changed since it was recorded."""
    path = Path(dataset.root) / photo.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PhotosError(
            f"{path}: {error.strerror or error}: put the photos back where they were, give --photos-root, or "
            "train again"
        ) from None
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise PhotosError(f"{path}: has changed since it was trained with: put it back, or train again")
    return data


def read_hashed(root: Path, photo: Photo, sent: bytes | None = None) -> bytes:
    """The photo's bytes, `sent` or else read under `root`: what comes of them is kept by their sha256.

    Raises ChangedError when they are others than were hashed, PictureError when they cannot be read.
    """
    path = root / photo.path
    data = read_bytes(path) if sent is None else sent
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise ChangedError(f"{path}: has changed while it was read")
    return data


def _given_splits(root: Path) -> tuple[dict[str, Path], list[LeftOut]]:
    """The folders of the splits that `root` holds; `root` itself is the training split when it holds none.

    A class may be called "train" too: train/ is a split only when it holds folders and no picture.
    """
    given: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    twice: tuple[Path, ...] = ()
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            left_out.append(LeftOut(f"{folder.name}/", "beside train/, but neither val/ nor test/"))
        else:
            twice = (given[split], folder) if split in given else twice
            given.setdefault(split, folder)
    train = given.get("train")
    if train is None or not _folders(train) or any(_is_picture(path) for path in _visible(train)):
        return {"train": root}, []
    if twice:
        raise PhotosError(f"{root}: {' and '.join(f'{one.name}/' for one in twice)} are one split; keep one")
    return {split: given[split] for split in SPLITS if split in given}, left_out


def _class_folders(folder: Path) -> list[tuple[Path, str]]:
    """The class folders of `folder` and their labels, those that a model's contract takes: they end up on
    terminals.
    """
    found: list[tuple[Path, str]] = []
    for class_folder in _folders(folder):
        label = unicodedata.normalize("NFC", class_folder.name)  # macOS spells é in two characters
        if not is_name(label):
            raise PhotosError(
                f"{folder}: the class name {label!r} is too long or not all printable; rename the folder"
            )
        found.append((class_folder, label))
    if len({label for _, label in found}) > MAX_LABELS:
        raise PhotosError(
            f"{folder}: holds over {MAX_LABELS:,} classes, more than a model can tell; put some together"
        )
    return found


def _read_split(
    root: Path, folder: Path, labelled: Sequence[tuple[Path, str]], split: str
) -> tuple[list[Photo], list[LeftOut]]:
    """Every picture file in the class folders of `folder`, hashed, and the files that are none."""
    pictures: list[tuple[Path, str]] = []
    left_out: list[LeftOut] = []
    for class_folder, label in labelled:
        before = len(pictures)
        for path in _files(class_folder, (root, folder)):
            if _is_picture(path):
                pictures.append((path, label))
            else:
                left_out.append(LeftOut(path.relative_to(root).as_posix(), _why_no_picture(path)))
        if len(pictures) == before:
            raise PhotosError(f"{class_folder}: no photo in this class folder; add some or remove the folder")
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(file_sha256, (path for path, _ in pictures)))
    photos: list[Photo] = []
    for (path, label), digest in zip(pictures, hashes, strict=True):
        name = path.relative_to(root).as_posix()
        if digest.startswith("!"):
            left_out.append(LeftOut(name, digest[1:]))
        else:
            photos.append(Photo(name, label, split, digest))
    if unread := {label for _, label in pictures} - {photo.label for photo in photos}:
        raise PhotosError(
            f"{folder}: class {min(unread)} has no readable photo; add some or remove its folder"
        )
    return photos, left_out


def _why_no_picture(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:  # of what may be a folder of photos
        return error.strerror or str(error)
    return "not a picture by its name"


def _one_of_each(photos: list[Photo]) -> tuple[list[Photo], list[LeftOut]]:
    """Each photo once. The same bytes in two classes contradict each other, so that neither is kept."""
    same: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        same[photo.sha256].append(photo)
    kept: list[Photo] = []
    left_out: list[LeftOut] = []
    for first, *others in same.values():
        for other in others:
            if other.split != first.split:
                raise PhotosError(
                    f"{first.path} and {other.path} are the same photo in two splits; "
                    "a model must not be tested on what it was trained on: remove one"
                )
        labels = {photo.label for photo in (first, *others)}
        if len(labels) > 1:
            reason = f"the same photo in several classes: {', '.join(sorted(labels))}"
            left_out += [LeftOut(photo.path, reason) for photo in (first, *others)]
        else:
            kept.append(first)
            reason = f"the same photo as {printable(first.path)}"
            left_out += [LeftOut(other.path, reason) for other in others]
    return kept, left_out


def _limited(photos: list[Photo], limit: int, seed: int) -> list[Photo]:
    kept: list[Photo] = []
    for group in _by_class(photos).values():
        # Another lot than the splits': by the same one, those kept would all fall into test.
        kept += sorted(group, key=lambda photo: _lot(photo, f"limit {seed}"))[:limit]
    return kept


def _cut_from_train(photos: list[Photo], shares: dict[str, float], seed: int) -> list[Photo]:
    """Move the shares named out of the training photos.

    A photo's lot, a number in [0, 1) drawn from its bytes, decides alone. Only in a class of few photos,
    where lots may fall far from the share, is a split held to between one photo and twice its share, and one
    photo stays in train.
    """
    result = [photo for photo in photos if photo.split != "train"]
    for group in _by_class([photo for photo in photos if photo.split == "train"]).values():
        rest = sorted(group, key=lambda photo: _lot(photo, seed))
        bound, taken = 0.0, 0
        for split, share in sorted(shares.items()):
            bound += share
            count = sum(_lot(photo, seed) < bound for photo in rest) - taken
            count = min(max(count, math.ceil(share)), math.ceil(2 * share * len(rest)), len(rest) - taken - 1)
            result += [replace(photo, split=split) for photo in rest[taken : taken + count]]
            taken += count
        result += rest[taken:]
    return result


def _by_class(photos: list[Photo]) -> dict[tuple[str, str], list[Photo]]:
    groups: dict[tuple[str, str], list[Photo]] = defaultdict(list)
    for photo in photos:
        groups[photo.split, photo.label].append(photo)
    return groups


def _lot(photo: Photo, seed: int | str) -> float:
    digest = hashlib.sha256(f"{seed}:{photo.sha256}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def file_sha256(path: Path) -> str:
    """The hex digest of a file, or "!" and the reason why it cannot be read."""
    digest = hashlib.sha256()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "!is not a regular file"  # opening a pipe would wait for whoever writes into it
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return f"!{error.strerror or error}"
    return digest.hexdigest()


def _visible(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [path for path in entries if not path.name.startswith(".") and path.name.lower() not in LITTER]


def _unreadable(folder: Path, error: OSError) -> PhotosError:
    return PhotosError(f"{folder}: {error.strerror}; make the folder readable, or move it away")


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if os.path.isdir(path)]


def _files(folder: Path, above: Iterable[Path]) -> Iterator[Path]:
    """Every visible file under `folder`, links followed, but into no folder twice nor one of `above`."""
    seen = {_place(path) for path in above}
    waiting = [folder]  # no recursion: folders may lie deeper than that goes
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            yield path
        elif (place := _place(path)) not in seen:
            seen.add(place)
            waiting += reversed(_visible(path))


def _place(folder: Path) -> tuple[int, int]:
    """What tells a folder from every other, whatever links lead to it."""
    try:
        found = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from None
    return found.st_dev, found.st_ino


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not os.path.isdir(path)
