"""Find the photos under a folder and take their classes from the folder names.

Two layouts are supported: a folder of class folders, or a folder with train/ and test/ (val/ is optional),
each of which holds class folders. "Train", "valid" and "validation" are accepted too. A missing split is
taken from the training photos. A class folder named "none" holds negatives: photos of none of the classes.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from runtime.common.text import is_name, printable
from runtime.inference.prediction import UNKNOWN
from runtime.model_file.contract import MAX_LABELS
from runtime.preprocess.photo_files import NONE_LABEL, SPLIT_NAMES, SUFFIXES
from train.data.dataset import (
    SPLITS,
    Dataset,
    HashError,
    LeftOut,
    Photo,
    PhotosError,
    file_sha256,
    validated,
)
from train.data.splits import limit_per_class, split_train
from train.data.synthetic import SYNTHETIC_MARKER

# Files and folders of operating systems and network drives. Names that start with a dot are ignored as well.
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin", "system volume information"}
SYSTEM_NAMES |= {"lost+found", "@eadir", "#recycle"}

ClassFolders = list[tuple[Path, str]]  # folders and their labels


def find_photos(
    root: Path,
    *,
    split_seed: int = 0,
    val_share: float = 0.15,
    test_share: float = 0.15,
    limit: int | None = None,
    none: Path | None = None,
    negatives: bool = True,
    validate: bool = True,
) -> Dataset:
    """Read the folder `root` into a Dataset.

    `limit` is the number of photos per class, and of negatives, in each split that has a folder.
    train/data/splits.py describes how photos are assigned to splits. Negatives are in the class folders named
    "none" in any case, or else in the folder `none` and its subfolders (without it: a folder "none" beside
    train/); `negatives=False` leaves them out. `validate=False` accepts classes without training photos.
    Raises PhotosError if the folder cannot be trained on: a wrong path, fewer than two classes, an empty
    class, a class name that a model file cannot hold, the same photo in two split folders; or if a folder of
    negatives has no photo.
    """
    root = Path(root)
    _check_is_folder(root, "give a folder with one folder of photos per class")
    split_folders, left_out = _split_folders(root)
    _check_train_has_classes(root, split_folders)
    folders = {split: _class_folders(folder, none) for split, folder in split_folders.items()}
    _check_splits_have_classes(split_folders, folders)
    beside = _none_beside_splits(root, split_folders) if none is None else None
    if beside and any(label == NONE_LABEL for found in folders.values() for _, label in found):
        left_out.append(LeftOut(f"{beside.name}/", "is not used: a split folder has a folder none too"))
    elif beside:
        none = beside
    folders, none, unused = _choose_negatives(root, folders, none, negatives)
    found: list[Photo] = []
    for split, folder in split_folders.items():
        in_split, unusable = _read_split(root, folder, folders[split], split)
        found += in_split
        left_out += unusable
    shares = {"val": val_share, "test": test_share}
    missing = {split: share for split, share in shares.items() if split not in split_folders}
    photos, duplicates = without_duplicates([photo for photo in found if photo.label != NONE_LABEL])
    outside, unusable = _read_outside(none)
    candidates = [photo for photo in found if photo.label == NONE_LABEL] + outside
    candidates, copies = _negatives_without_duplicates(candidates, found, none or root)
    left_out += [*unused, *duplicates, *unusable, *copies]
    if limit is not None:
        photos = limit_per_class(photos, limit, split_seed)
        candidates = limit_per_class(candidates, limit, split_seed)
    photos = split_train(photos, missing, split_seed)
    candidates = split_train(candidates, shares if none else missing, split_seed)
    dataset = Dataset(
        root.resolve(),
        tuple(sorted({photo.label for photo in found if photo.split == "train"} - {NONE_LABEL})),
        tuple(sorted(photos, key=lambda photo: photo.path)),
        tuple(sorted(left_out, key=lambda item: item.path)),
        os.path.exists(root / SYNTHETIC_MARKER),
        tuple(sorted(candidates, key=lambda photo: photo.path)),
        none.resolve() if none else None,
    )
    return validated(dataset) if validate else dataset


def with_negatives_of(dataset: Dataset, none: Path, shares: Mapping[str, float], seed: int) -> Dataset:
    """The data set with the photos in the folder `none` as its negatives, in splits of these shares.

    A photo that is one of its negatives already stays in its split: the network learned the train negatives,
    which must not measure it. Raises PhotosError if the folder has no photo, or only photos of the classes.
    """
    found, unusable = _read_outside(none)
    negatives, copies = _negatives_without_duplicates(found, dataset.photos, none)
    left_out = (*dataset.left_out, *unusable, *copies)
    splits = {photo.sha256: photo.split for photo in dataset.negatives}
    new = split_train([photo for photo in negatives if photo.sha256 not in splits], shares, seed)
    old = [replace(photo, split=splits[photo.sha256]) for photo in negatives if photo.sha256 in splits]
    ordered = tuple(sorted([*new, *old], key=lambda photo: photo.path))
    return replace(dataset, negatives=ordered, negatives_root=none.resolve(), left_out=left_out)


def read_class_folders(folder: Path, split: str, remedy: str) -> tuple[list[Photo], list[LeftOut]]:
    """The photos in the class folders of `folder`, all in `split`, and the files that are not used; paths are
    relative to `folder`. Photos in a folder named "none", in any case, have the label NONE_LABEL.

    Raises PhotosError, with `remedy` as the next step, if `folder` has no class folder or is divided into
    train/ and test/.
    """
    _check_is_folder(folder, remedy)
    class_folders = _class_folders(folder, None)
    if not class_folders or _split_folders(folder)[0]["train"] != folder:
        raise PhotosError(f"{folder}: does not hold class folders; {remedy}")
    return _read_split(folder, folder, class_folders, split)


def _check_train_has_classes(root: Path, split_folders: Mapping[str, Path]) -> None:
    """Raise PhotosError if test/ or val/ holds class folders and train/ does not, or has another name."""
    if split_folders["train"] != root:
        return
    for folder in _subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower(), "train")
        if split != "train" and any(_holds_pictures(inside) for inside in _subfolders(folder)):
            raise PhotosError(
                f"{root}: {folder.name}/ holds class folders, but no folder train/ does; name the folder of "
                f"the training photos train/, or rename {folder.name}/ if it is a class"
            )


def _check_splits_have_classes(
    split_folders: Mapping[str, Path], folders: Mapping[str, ClassFolders]
) -> None:
    """Raise PhotosError for a folder such as test/ whose photos are not in class folders."""
    for split, folder in split_folders.items():
        if split != "train" and not folders[split]:
            raise PhotosError(
                f"{folder}: holds no class folders; move its photos into {folder.name}/CLASS, or rename it: "
                f"training then takes {split} photos from train/"
            )


def _none_beside_splits(root: Path, split_folders: Mapping[str, Path]) -> Path | None:
    """The folder none/ beside train/, if there is one."""
    if split_folders["train"] == root:
        return None
    return next((folder for folder in _subfolders(root) if folder.name.casefold() == NONE_LABEL), None)


def _choose_negatives(
    root: Path, folders: dict[str, ClassFolders], none: Path | None, negatives: bool
) -> tuple[dict[str, ClassFolders], Path | None, list[LeftOut]]:
    """The folders to read by split, the folder of negatives outside them, and folders that are not used.

    The folder `none` may be one of the class folders. If its name is "none", it stands for the folders of
    this name in all splits.
    """
    inside = [path for found in folders.values() for path, label in found if label == NONE_LABEL]
    named = [path for path in inside if none is not None and _same(path, none)]
    if negatives and (none is None or any(path.name.casefold() == NONE_LABEL for path in named)):
        return folders, None, []
    used = named if negatives else []
    reason = "--none gives another folder" if negatives else "--no-negatives is set"
    used_folders = {
        split: [(path, label) for path, label in found if label != NONE_LABEL or path in used]
        for split, found in folders.items()
    }
    unused = [f"{path.relative_to(root).as_posix()}/" for path in inside if path not in used]
    left_out = [LeftOut(folder, f"is not used: {reason}") for folder in unused]
    return used_folders, none if negatives and not used else None, left_out


def _same(path: Path, other: Path) -> bool:
    return os.path.exists(other) and path.samefile(other)


def _check_is_folder(root: Path, remedy: str) -> None:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise PhotosError(f"{root}: {reason}; {remedy}") from None
    if not is_folder:
        raise PhotosError(f"{root} is a file; {remedy}")


def _split_folders(root: Path) -> tuple[dict[str, Path], list[LeftOut]]:
    """The folders of the splits in `root`. Without split folders, `root` itself is the training split.

    A class may be called "train" too: train/ is a split only if it holds folders, and no picture unless val/
    or test/ is beside it.
    """
    by_split: dict[str, list[Path]] = defaultdict(list)
    others: list[Path] = []
    for folder in _subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is not None:
            by_split[split].append(folder)
        elif folder.name.casefold() != NONE_LABEL:
            others.append(folder)
    train = by_split["train"][0] if "train" in by_split else None
    if train is None or not _subfolders(train) or (len(by_split) == 1 and _holds_pictures(train)):
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


def _class_folders(folder: Path, none: Path | None) -> ClassFolders:
    """The class folders in `folder` with their labels; NONE_LABEL is the label of the folder `none` too.

    Raises PhotosError for a label that a model file cannot hold, or that a terminal cannot show.
    """
    found: ClassFolders = []
    for class_folder in _subfolders(folder):
        label = unicodedata.normalize("NFC", class_folder.name)  # macOS writes é as two characters
        if label.casefold() == NONE_LABEL or (none is not None and _same(class_folder, none)):
            label = NONE_LABEL
        if not is_name(label):
            raise PhotosError(
                f"{folder}: the class name {label!r} is too long or not printable; rename the folder"
            )
        if label.casefold() == UNKNOWN:
            raise PhotosError(
                f"{class_folder}: unknown is the answer for pictures of no class; rename the folder, for "
                f"example to {NONE_LABEL} if its photos show none of the classes"
            )
        found.append((class_folder, label))
    names: dict[str, str] = {}
    for _, label in found:
        if (other := names.setdefault(label.casefold(), label)) != label:
            raise PhotosError(
                f"{folder}: the classes {other} and {label} differ in upper and lower case only; merge or "
                "rename them"
            )
    if len({label for _, label in found}) > MAX_LABELS:
        raise PhotosError(f"{folder}: has over {MAX_LABELS:,} classes, the limit of a model; merge some")
    return found


def _read_split(
    root: Path, folder: Path, class_folders: Sequence[tuple[Path, str]], split: str
) -> tuple[list[Photo], list[LeftOut]]:
    """The hashed pictures in the class folders of `folder`, and the files that are not used."""
    pictures: list[tuple[Path, str]] = []
    beside = {root, folder} if split == "train" else {folder}  # every data set has a folder of this split
    loose = [path for parent in beside for path in _visible(parent) if _is_picture(path)]
    left_out = [LeftOut(path.relative_to(root).as_posix(), "is not in a class folder") for path in loose]
    for class_folder, label in class_folders:
        before, left_out_before = len(pictures), len(left_out)
        for path in _files(class_folder, (root, folder)):
            if _is_picture(path):
                pictures.append((path, label))
            else:
                left_out.append(LeftOut(path.relative_to(root).as_posix(), _not_a_picture(path)))
        if len(pictures) == before:
            kind = "class folder" if label != NONE_LABEL else "folder of photos of none of the classes"
            others = left_out[left_out_before:]
            why = f", and {others[0].path} {others[0].reason}" if others else ""
            raise PhotosError(f"{class_folder}: no photo in this {kind}{why}; add some or remove the folder")
    photos, unreadable_files = _hash_pictures(
        [(path, path.relative_to(root).as_posix(), label) for path, label in pictures], split
    )
    left_out += unreadable_files
    if unreadable := {label for _, label in pictures} - {photo.label for photo in photos}:
        raise PhotosError(
            f"{folder}: class {min(unreadable)} has no readable photo; add some or remove its folder"
        )
    return photos, left_out


def _read_outside(none: Path | None) -> tuple[list[Photo], list[LeftOut]]:
    """The pictures under a folder of negatives outside the photos, and the files that are not pictures."""
    if none is None:
        return [], []
    _check_is_folder(none, "give --none a folder of photos of none of the classes")
    files = [(path, path.as_posix()) for path in _files(none.resolve(), ())]
    pictures = [(path, name, NONE_LABEL) for path, name in files if _is_picture(path)]
    photos, left_out = _hash_pictures(pictures, "train")
    left_out += [LeftOut(name, _not_a_picture(path)) for path, name in files if not _is_picture(path)]
    if not photos:
        raise PhotosError(f"--none {none}: no readable photo in this folder; add some, or use --no-negatives")
    return photos, left_out


def _hash_pictures(
    pictures: Sequence[tuple[Path, str, str]], split: str
) -> tuple[list[Photo], list[LeftOut]]:
    """Photos of files with their paths in the data set and labels; and the files that cannot be read."""
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash_or_error, (path for path, _, _ in pictures)))
    photos: list[Photo] = []
    left_out: list[LeftOut] = []
    for (_, name, label), digest in zip(pictures, hashes, strict=True):
        if isinstance(digest, HashError):
            left_out.append(LeftOut(name, str(digest)))
        else:
            photos.append(Photo(name, label, split, digest))
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


def without_duplicates(photos: list[Photo]) -> tuple[list[Photo], list[LeftOut]]:
    """Each photo once. A photo in two classes is removed from both, because one label is wrong."""
    copies: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        copies[photo.sha256].append(photo)
    _check_splits_differ(copies.values())
    unique: list[Photo] = []
    left_out: list[LeftOut] = []
    for first, *others in copies.values():
        labels = {photo.label for photo in (first, *others)}
        if len(labels) > 1:
            reason = f"the same photo is in several classes: {', '.join(sorted(labels))}"
            left_out += [LeftOut(photo.path, reason) for photo in (first, *others)]
        else:
            unique.append(first)
            reason = f"is the same photo as {printable(first.path)}"
            left_out += [LeftOut(other.path, reason) for other in others]
    return unique, left_out


def _check_splits_differ(copies: Iterable[Sequence[Photo]]) -> None:
    """Raise PhotosError if a photo, of which each item of `copies` has all copies, is in two splits."""
    shared = [(first, other) for first, *others in copies for other in others if other.split != first.split]
    if not shared:
        return
    first, other = shared[0]
    more = f" ({len(shared) - 1:,} more, such as {shared[1][1].path})" if shared[1:] else ""
    raise PhotosError(
        f"{first.path} and {other.path} are the same photo in two splits{more}. This makes the measured "
        "accuracy too high; remove the copies from one of the folders"
    )


def _negatives_without_duplicates(
    negatives: list[Photo], found: Iterable[Photo], folder: Path
) -> tuple[list[Photo], list[LeftOut]]:
    """Each negative once, without those that are also a photo of a class. `folder` is for the error text."""
    classes = {photo.sha256: photo for photo in found if photo.label != NONE_LABEL}
    unique, left_out = without_duplicates([photo for photo in negatives if photo.sha256 not in classes])
    for photo in negatives:
        if other := classes.get(photo.sha256):
            reason = f"is the same photo as {printable(other.path)}, so it does not show none of the classes"
            left_out.append(LeftOut(photo.path, reason))
    if negatives and not unique:
        raise PhotosError(
            f"{folder}: every photo of none of the classes is also a photo of a class; replace them, or use "
            "--no-negatives"
        )
    return unique, left_out


def _visible(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [
        path for path in entries if not path.name.startswith(".") and path.name.lower() not in SYSTEM_NAMES
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
