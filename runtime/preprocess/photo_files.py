"""Which photos a user means by files, folders and patterns."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# What counts as a picture in a folder. A file that is named itself is read whatever its suffix is. JPEG 2000
# and PNM are not read: an error that names the reason is better than skipping them.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"}
)


def find_photos(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the photos that files, folders and patterns name, and by argument why it names none."""
    photos: list[str] = []
    problems: dict[str, str] = {}
    for argument in arguments:
        matches = [argument]
        # Some shells (Windows) leave patterns to the program. An existing file of that name comes first.
        if any(char in argument for char in "*?[") and not os.path.lexists(argument):
            matches = _expand(argument, problems)
        for match in matches:
            if os.path.isdir(match):
                photos += _photos_below(match, problems)
            else:
                photos.append(match)
    return photos, problems


def _expand(pattern: str, problems: dict[str, str]) -> list[str]:
    import glob  # late: shells expand most patterns themselves

    try:
        matches = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207 (may be absolute)
    except RecursionError:
        problems[pattern] = "the folders are nested too deeply for a pattern: name a folder instead"
        return []
    if not matches:
        problems[pattern] = "matches no file"
    return matches


def natural_key(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts photo10 after photo9."""
    parts = re.split("([0-9]+)", name.casefold())
    return [(int(part), "") if at % 2 else (0, part) for at, part in enumerate(parts)]


def walk(top: str | Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Yields each visible folder at and below `top` with the names of the pictures in it.

    Like os.walk, but without recursion: that of Python 3.11 ends below 1,000 folders. `on_error` gets the
    folders that cannot be read. Links to folders are not followed.
    """
    folders = [os.fspath(top)]
    while folders:
        folder = folders.pop()
        names, below = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # Hidden names are thumbnails, trash, and the copies that macOS leaves on memory cards.
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        below += [entry.path] * (not entry.is_symlink())
                    elif Path(entry.name).suffix.lower() in SUFFIXES:
                        names.append(entry.name)
        except OSError as error:
            on_error(error)
        folders += reversed(below)
        yield folder, names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _photos_below(top: str, problems: dict[str, str]) -> list[str]:
    unreadable: dict[str, str] = {}
    photos = [
        str(Path(folder, name))
        for folder, names in walk(
            top, lambda error: unreadable.update({str(error.filename): str(error.strerror).lower()})
        )
        for name in names
    ]
    if not photos and not unreadable:
        unreadable[top] = "no pictures in this folder"
    problems |= unreadable
    return sorted(photos, key=natural_key)
