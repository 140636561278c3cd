"""The rules for --capture LABEL DIR: training reads DIR/LABEL as the class LABEL, or `none` as no class."""

import os
import shlex
import unicodedata
from pathlib import Path

from runtime.common.errors import UserError
from runtime.common.text import printable
from runtime.inference.prediction import UNKNOWN
from runtime.preprocess.photo_files import NONE_LABEL, SPLIT_NAMES, SUFFIXES

MAX_LABEL_BYTES = 200
MAX_LISTED = 10


def class_folder(label: str, folder: Path) -> Path:
    """Returns `folder`/`label`, or the folder there whose name differs in its Unicode form alone."""
    name = _composed(label)
    return next((path for path in _visible(folder) if _composed(path.name) == name), folder / label)


def check_capture_folder(label: str, folder: Path, *, new_class: bool = False) -> None:
    """Raises UserError unless `folder`/`label` is a class folder of a data set, or its folder `none`.

    A data set holds class folders, or train/, val/ and test/ that hold them. A class that the data set does
    not have yet is accepted when it is the first one, or with `new_class`, unless it differs from a class in
    upper and lower case alone. `none` is not a class: every data set accepts it.
    """
    _check_label(label)
    if folder.name in ("", ".."):  # such as ".", whose name and parent are not in the path
        folder = Path(os.path.realpath(folder))
    if label.casefold() == UNKNOWN:
        raise UserError(
            f"{label} is the answer for pictures of no class, so training refuses it as a class: for photos "
            f"of none of the classes, use {_flag(NONE_LABEL, folder)}"
        )
    if _has_pictures(folder):
        raise UserError(
            f"{printable(str(folder))}: holds photos, so it is a class folder itself: "
            f"use {_flag(label, folder.parent)}"
        )
    if train := _train_split(folder):
        raise UserError(
            f"{printable(str(folder))}: training reads only the splits in it, not other folders: "
            f"use {_flag(label, train)}"
        )
    classes = [name for name in _folder_names(folder) if not _is_none(name)]
    if not classes:
        _check_new_data_set(label, folder)
    elif not _is_none(label) and _composed(label) not in classes:
        _check_new_class(label, folder, classes, new_class)


def _check_new_class(label: str, folder: Path, classes: list[str], new_class: bool) -> None:
    for name in classes:
        if name.casefold() == _composed(label).casefold():
            raise UserError(f"{printable(str(folder))}: has the class {name}: use {_flag(name, folder)}")
    if not new_class:
        raise UserError(
            f"{printable(str(folder))}: has no class {label}; its classes are {_listed(classes)}: "
            "correct the label, or add --new-class to start this class"
        )


def _check_new_data_set(label: str, folder: Path) -> None:
    """Raises UserError if `folder`, which holds no class yet, would become part of another data set."""
    if folder.exists() and folder.name.lower() not in SPLIT_NAMES:
        return  # created by the user for a data set
    parent = folder.parent
    names = [name for name in _folder_names(parent) if name != folder.name]
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    is_split = folder.name.lower() in SPLIT_NAMES
    train = _train_split(parent) if is_split or len(splits) > 1 else None
    siblings = splits if train else [name for name in names if _has_pictures(parent / name)]
    # A single folder of pictures beside it, such as that of --save-unknown, makes no data set.
    is_data_set = train or (len(siblings) > 1 and 2 * len(siblings) >= len(names))
    if siblings and (is_data_set or is_split or folder.name.lower() == label.lower()):
        raise UserError(
            f"{printable(str(folder))}: would change the data set of {_listed(siblings)} beside it: "
            f"use {_flag(label, train or parent)}"
        )


def _check_label(label: str) -> None:
    """Raises UserError unless `label` is a valid folder name on every system, inside its parent folder."""
    if (
        not label.isprintable()
        or not 1 <= len(label.encode()) <= MAX_LABEL_BYTES
        or set(label) & set('/\\:*?"<>|')
        or label[0] in "._- "
        or label[-1] in ". "
    ):
        raise UserError(f"{printable(label)!r} cannot be a class: use a plain name, such as roses")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS decomposes é


def _is_none(label: str) -> bool:
    return label.casefold() == NONE_LABEL


def _train_split(folder: Path) -> Path | None:
    """Returns the train/ folder of a data set with splits."""
    for name in _folder_names(folder):
        split = folder / name
        if name.lower() == "train" and _folder_names(split) and not _has_pictures(split):
            return split
    return None


def _folder_names(folder: Path) -> list[str]:
    """Returns the names of the visible folders in `folder`; none if it does not exist."""
    names = (path.name for path in _visible(folder) if os.path.isdir(path))
    return sorted(_composed(name) for name in names)


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES and os.path.isfile(path) for path in _visible(folder))


def _visible(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:  # missing or unreadable; saving the first photo reports the reason
        return []


def _listed(names: list[str]) -> str:
    more = [f"… ({len(names)} in all)"] if len(names) > MAX_LISTED else []
    return ", ".join([printable(name) for name in names[:MAX_LISTED]] + more)


def _flag(label: str, folder: Path) -> str:
    return f"--capture {shlex.quote(label)} {shlex.quote(printable(str(folder)))}"
