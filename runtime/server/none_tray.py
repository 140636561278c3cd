"""Photos of none of the classes that people marked on the page, in a folder of bounded size.

`python -m train --none FOLDER` and `python -m runtime.adapt --none FOLDER` read the same folder.
"""

import os
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from runtime.common.atomic import atomic_write, remove_unfinished
from runtime.common.errors import ModelError
from runtime.model_file.files import read_bytes
from runtime.preprocess.stored_photo import MAX_PHOTO_BYTES, encode_photo, id_ending, is_id, new_id

if TYPE_CHECKING:
    from runtime.preprocess.picture import Pixels

MAX_PHOTOS = 200
MAX_BYTES = 100_000_000  # of all photos


class NoneTray:
    """The marked photos in `folder`, which is created for the first one. Any thread may call its methods.

    A photo's id is the name of its file: the time when it was added, and a part of the sha256 of its bytes.
    Other files in the folder are neither listed nor changed.
    """

    def __init__(self, folder: Path, max_photos: int = MAX_PHOTOS, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_photos, self._max_bytes = folder, max_photos, max_bytes
        self._lock = Lock()

    def ids(self) -> list[str]:
        """Returns the ids of all photos, oldest first; none if the folder cannot be read."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            files = (entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            return sorted(filter(is_id, files))
        return []

    def add(self, pixels: "Pixels") -> str:
        """Stores a picture, uint8 [H, W, 3], RGB, as a JPEG, and returns its id.

        The oldest photos make room for it. A picture that the folder has already keeps its id. Raises
        OSError.
        """
        data = encode_photo(pixels)
        ending = id_ending(data)
        with self._lock:
            ids = self.ids()
            for id in ids:
                if id.endswith(ending):
                    return id
            self._make_room(ids, len(data))
            added = new_id(ending, max(ids, default=""))
            with atomic_write(self.folder / added) as file:
                file.write(data)
        return added

    def path(self, id: str) -> Path:
        """Returns the file of a photo. Raises KeyError if the folder has no such photo."""
        path = self.folder / id
        # The pattern first: a client may send any text as an id, such as "../token".
        if not is_id(id) or not _is_file(path):
            raise KeyError(id)
        return path

    def read(self, id: str) -> bytes:
        """Returns the JPEG of a photo. Raises KeyError if the folder has no such photo.

        In one step: another client may remove the photo at any time.
        """
        try:
            return read_bytes(self.path(id), MAX_PHOTO_BYTES)
        except ModelError:
            raise KeyError(id) from None

    def remove(self, id: str) -> None:
        """Deletes a photo. Raises KeyError if the folder has no such photo, and OSError."""
        with self._lock:
            self.path(id).unlink()

    def clear(self) -> None:
        """Deletes all photos. Raises OSError."""
        with self._lock:
            for id in self.ids():
                (self.folder / id).unlink()

    def _make_room(self, ids: list[str], byte_count: int) -> None:
        """Creates the folder, and deletes the oldest photos until one more of `byte_count` bytes fits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder, ".*.jpg.*")
        sizes = {id: (self.folder / id).stat().st_size for id in ids}
        used = sum(sizes.values()) + byte_count
        for count, id in zip(range(len(ids), 0, -1), ids, strict=True):
            if count < self.max_photos and used <= self._max_bytes:
                return
            (self.folder / id).unlink()
            used -= sizes[id]


def _is_file(path: Path) -> bool:
    """Whether the path is a file, and no link, which could name any file of this user."""
    return path.is_file() and not path.is_symlink()
