"""The photos that a device was taught, in class folders of bounded size.

`python -m train PHOTOS` reads the same folders. The photos of none of the classes are in the folder `none`.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import unquote

from runtime.common.atomic import atomic_create, remove_unfinished
from runtime.common.errors import UserError
from runtime.common.text import is_name, printable
from runtime.inference.learned_state import MAX_MB
from runtime.inference.prediction import UNKNOWN
from runtime.preprocess.photo_files import NONE_LABEL
from runtime.preprocess.stored_photo import encode_photo, id_ending, is_id, new_id

if TYPE_CHECKING:
    from runtime.preprocess.picture import Pixels

PHOTOS_NAME, FEATURES_NAME = "photos", "features"
FEATURES_SUFFIX = ".f32"  # after the id of the photo
MAX_PHOTOS = 3000  # listing them takes 10 ms for a thousand
MAX_NEW_LABELS = 50  # classes; the time of a fit grows with their square
MAX_NEW_LABEL = 60  # characters
MAX_DECOMPOSED = 1000  # characters of a label whose accents are characters of their own
MAX_FOLDER_BYTES = 200  # of a folder's name in UTF-8: file systems allow 255

_FEATURES = re.compile("[0-9a-f]{16}")  # the folder of a model in `features`
_UNSAFE = re.compile(r'[/\\:*?"<>|%]|^\.|[. ]$')  # in the name of a folder, on any system


@dataclass(frozen=True)
class TaughtPhoto:
    """A stored photo. Its id, the name of its file, is the time when it was added and a part of a sha256."""

    id: str
    label: str
    path: Path


@dataclass
class _Step:
    """Photos that are taught together, and their limits."""

    bound: int  # bytes of all files
    room: int  # bytes of the new photos
    most: int  # photos
    added: dict[str, int] = field(default_factory=dict)  # bytes by id
    taught: set[str] = field(default_factory=set)  # ids, also of photos that were there before


class TaughtPhotos:
    """The photos of a learned state's folder, in class folders below `photos`. Any thread may use it.

    The oldest photos make room for new ones when all files of the folder have over `max_mb` MB, or when there
    are MAX_PHOTOS. Without `max_mb`, the limit is MAX_MB, or the present size of a folder that had a larger
    limit. Files that are not photos with an id are neither listed nor changed.
    """

    def __init__(self, folder: Path, max_mb: float | None = None) -> None:
        self.folder, self._max_mb = folder / PHOTOS_NAME, max_mb
        self.features = folder / FEATURES_NAME  # of the photos, in a file each
        self.deleted: list[TaughtPhoto] = []  # to make room
        self._lock = Lock()
        self._step: _Step | None = None

    def photos(self) -> list[TaughtPhoto]:
        """Returns all photos, oldest first; none if the folder cannot be read."""
        found = (TaughtPhoto(id, label, folder / id) for id, label, folder in self._scan())
        return sorted(found, key=lambda photo: photo.id)

    def labels(self) -> dict[str, int]:
        """Returns the number of photos by label, in the order of the labels."""
        counts: dict[str, int] = {}
        for photo in self.photos():
            counts[photo.label] = counts.get(photo.label, 0) + 1
        return dict(sorted(counts.items()))

    def find(self, id: str) -> TaughtPhoto:
        """Returns the photo with this id. Raises KeyError if there is none."""
        if is_id(id):  # first: a client may send any text as an id, such as "../token"
            for photo in self.photos():
                if photo.id == id:
                    return photo
        raise KeyError(id)

    def add(self, label: str, pixels: Pixels, encoded: bytes = b"") -> TaughtPhoto:
        """Stores a picture, uint8 [H, W, 3], RGB, as a JPEG under a label that `check_label` accepted.

        A picture that is stored already keeps its id, and moves when it has another label. This includes a
        copy of a stored file, whose bytes are `encoded`: encoding it again would change them. Raises OSError,
        and UserError when the photo alone is larger than the bound.
        """
        data = encode_photo(pixels)
        ending, newest = id_ending(data), ""
        endings = (ending, id_ending(encoded))
        with self._lock:
            for id, present_label, folder in self._scan():
                if id.endswith(endings):
                    photo = self._move(TaughtPhoto(id, present_label, folder / id), label)
                    break
                newest = max(newest, id)
            else:
                if not self._make_room(len(data)):
                    size = f"{len(data):,} bytes"
                    raise UserError(f"{self.folder}: no room for a photo of {size}: raise --max-mb")
                photo = self._create(label, ending, data, newest)
                if self._step:
                    self._step.added[photo.id] = len(data)
            if self._step:
                self._step.taught.add(photo.id)
            return photo

    def start_step(self) -> None:
        """Keeps the present photos until `trim`: a step that fails must not lose them. Raises OSError.

        Until then, all files may have up to twice the bound.
        """
        with self._lock:
            remove_unfinished(self.folder, "*/.*.jpg.*")
            present, state = self._count_bytes()
            bound, most = self._bound(present), max(MAX_PHOTOS, len(self.photos()))
            self._step = _Step(bound, bound - state, most)

    def excess(self) -> list[TaughtPhoto]:
        """Returns the photos that `trim` would delete now."""
        return self._choose_excess(0) or []

    def trim(self) -> None:
        """Deletes the oldest photos until all files are within the bound, and ends a step. Raises OSError.

        Photos that were taught in the step are deleted last, however old they are.
        """
        with self._lock:
            for photo in self._choose_excess(0) or []:
                self._delete_for_room(photo)
            self._step = None

    def move(self, id: str, label: str) -> TaughtPhoto:
        """Gives a photo another label. Raises KeyError if there is no such photo, and OSError."""
        with self._lock:
            return self._move(self.find(id), label)

    def remove(self, id: str) -> None:
        """Deletes a photo. Raises KeyError if there is none with this id, and OSError."""
        with self._lock:
            self._delete(self.find(id))

    def clear(self) -> None:
        """Deletes all photos. Raises OSError."""
        with self._lock:
            for photo in self.photos():
                self._delete(photo)

    def clear_features(self, kept: str = "") -> None:
        """Deletes the stored features, except those of the model whose sha256 starts with `kept`."""
        for folder in _folders(self.features):
            if _FEATURES.fullmatch(folder.name) and folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(self.features)

    def _create(self, label: str, ending: str, data: bytes, newest: str) -> TaughtPhoto:
        folder = self.folder / label_folder(label)
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / new_id(ending, newest)
            with suppress(FileExistsError, FileNotFoundError):  # by another process
                with atomic_create(path) as file:
                    file.write(data)
                return TaughtPhoto(path.name, label, path)

    def _move(self, photo: TaughtPhoto, label: str) -> TaughtPhoto:
        if photo.label == label:
            return photo
        path = self.folder / label_folder(label) / photo.id
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.path.replace(path)
        _remove_empty(photo.path.parent)
        return TaughtPhoto(photo.id, label, path)

    def _make_room(self, byte_count: int) -> bool:
        """Deletes the oldest photos until one more of `byte_count` bytes fits. Returns whether it does.

        In a step, only photos of this step are deleted.
        """
        if not (step := self._step):
            remove_unfinished(self.folder, "*/.*.jpg.*")
            excess = self._choose_excess(byte_count)
            for photo in excess or []:
                self._delete_for_room(photo)
            return excess is not None
        if byte_count > step.room:
            return False
        used = byte_count + sum(step.added.values())
        while used > step.room or len(step.added) >= step.most:
            oldest = min(step.added)
            with suppress(KeyError):  # deleted by another process
                self._delete_for_room(self.find(oldest))
            used -= step.added.pop(oldest)
        return True

    def _choose_excess(self, byte_count: int) -> list[TaughtPhoto] | None:
        """Returns the photos to delete so that a new photo of `byte_count` bytes fits; 0 means no new photo.

        None if deleting all photos would not be enough.
        """
        step, count = self._step, sum(1 for _ in self._scan())
        present, state = self._count_bytes()
        bound = step.bound if step else self._bound(present)
        if byte_count + state > bound:
            return None
        # A folder with more photos keeps them, and does not grow.
        too_many = count + (byte_count > 0) - (step.most if step else max(MAX_PHOTOS, count))
        used, excess = byte_count + present, list[TaughtPhoto]()
        if used <= bound and too_many <= 0:
            return excess
        taught = step.taught if step else set()
        for photo in sorted(self.photos(), key=lambda photo: (photo.id in taught, photo.id)):
            if used <= bound and len(excess) >= too_many:
                break
            used -= sum(map(_size, (photo.path, *self._features_of(photo.id))))
            excess.append(photo)
        return excess

    def _count_bytes(self) -> tuple[int, int]:
        """The bytes of all files, and of those that are neither photos nor their features."""
        total = state = 0
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder.parent):
                size = _tree_size(entry)
                total += size
                state += size * (entry.name not in (PHOTOS_NAME, FEATURES_NAME))
        return total, state

    def _bound(self, present: int) -> int:
        """The most bytes of all files, of which `present` are there."""
        if self._max_mb is not None:
            return int(self._max_mb * 1e6)
        return max(int(MAX_MB * 1e6), present)

    def _scan(self) -> Iterator[tuple[str, str, Path]]:
        """Yields the id, the label and the folder of each photo, in any order."""
        for folder in _folders(self.folder):
            if (label := folder_label(folder.name)) is not None:
                with suppress(OSError):
                    for entry in os.scandir(folder):
                        # A link could name any file of this user, and reading a pipe would never end.
                        if is_id(entry.name) and entry.is_file(follow_symlinks=False):
                            yield entry.name, label, folder

    def _delete_for_room(self, photo: TaughtPhoto) -> None:
        self._delete(photo)
        self.deleted.append(photo)

    def _delete(self, photo: TaughtPhoto) -> None:
        for path in (photo.path, *self._features_of(photo.id)):
            path.unlink(missing_ok=True)
        _remove_empty(photo.path.parent)

    def _features_of(self, id: str) -> list[Path]:
        return [folder / f"{id}{FEATURES_SUFFIX}" for folder in _folders(self.features)]


def check_label(label: str, labels: Iterable[str], classes: Iterable[str] | None = None) -> str:
    """Returns the label, in Unicode's composed form, for one of `labels`, for `none`, or for a new class.

    Raises UserError for a name that cannot be a label, or that differs from another label only in its case.
    With the `classes` of the model, also for a new class when `labels` have MAX_NEW_LABELS of them.
    """
    if len(label) <= MAX_DECOMPOSED:  # a longer text is no name, and takes the square of its length in time
        label = unicodedata.normalize("NFC", label)
    existing = [NONE_LABEL, *labels]
    if not is_name(label) or label != label.strip():
        raise UserError(
            f"{printable(label)!r}: is not a label: use 1 to {MAX_NEW_LABEL} printable characters without "
            "spaces at the ends"
        )
    if (other := find_label(label, existing)) is not None:
        if unicodedata.normalize("NFC", other) == label:
            return other
        raise UserError(f"{label}: the label {other} exists: use its spelling, or another name")
    if label.casefold() == UNKNOWN:
        raise UserError(f"{label}: is the answer for pictures of no class: teach them as {NONE_LABEL}")
    if len(label) > MAX_NEW_LABEL or len(label_folder(label).encode()) > MAX_FOLDER_BYTES:
        raise UserError(f"{label}: is too long for a label: use at most {MAX_NEW_LABEL} characters")
    if classes is not None and len({*existing} - {NONE_LABEL, *classes}) >= MAX_NEW_LABELS:
        raise UserError(
            f"{label}: is a new class, and a device learns {MAX_NEW_LABELS}: remove the photos of another, "
            "and learn again"
        )
    return label


def find_label(label: str, labels: Iterable[str]) -> str | None:
    """Returns the one of `labels` that is equal to the label when case is ignored, or None."""
    folded = unicodedata.normalize("NFC", label).casefold()
    same = (other for other in labels if unicodedata.normalize("NFC", other).casefold() == folded)
    return next(same, None)


def label_folder(label: str) -> str:
    """Returns the name of a label's folder: characters that a path cannot hold are percent-encoded."""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", label)


def folder_label(name: str) -> str | None:
    """Returns the label of a folder that `label_folder` named, or None for another folder."""
    name = unicodedata.normalize("NFC", name)  # macOS decomposes names
    label = unquote(name, errors="replace")
    return label if is_name(label) and label_folder(label) == name else None


def _folders(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds other photos
        folder.rmdir()


def _tree_size(top: os.DirEntry[str]) -> int:
    """Returns the bytes of a file, or of all files in a folder. Folders may be nested deeply."""
    total, waiting = 0, [top]
    while waiting:
        entry = waiting.pop()
        if not entry.is_dir(follow_symlinks=False):
            total += _size(entry)
            continue
        with suppress(OSError):  # deleted by another process
            waiting += os.scandir(entry)
    return total


def _size(path: Path | os.DirEntry[str]) -> int:
    with suppress(OSError):  # deleted by another process
        status = path.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0
