"""Which photos a user means by files, folders and patterns."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# The suffixes of pictures in a folder. A file that is named itself is read whatever its suffix is. JPEG 2000
# and PNM are not read: an error that names the reason is better than skipping them.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# How training reads the folders of a data set, by their names in lower case: as a split, or as photos of none
# of the classes.
SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
NONE_LABEL = "none"

# `**` as a whole part of a pattern, with the separators behind it.
_SEPARATORS = re.escape(os.sep + (os.altsep or ""))
_ANY_FOLDERS = re.compile(rf"(?:^|(?<=[{_SEPARATORS}]))(?:\*\*[{_SEPARATORS}]+)*\*\*(?:[{_SEPARATORS}]+|$)")


def find_photo_files(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the photos that files, folders and patterns name, and by argument why it names none."""
    photos: list[str] = []
    problems: dict[str, str] = {}
    for argument in arguments:
        matches = [argument]
        # Some shells (Windows) leave patterns to the program. An existing file of that name comes first.
        if any(char in argument for char in "*?[") and not os.path.lexists(argument):
            matches = _expand(argument, problems)
        found: list[str] = []
        for match in matches:
            found += _photos_below(match, problems) if os.path.isdir(match) else [match]
        photos += dict.fromkeys(found)  # `**/*` matches a folder and its files
    return photos, problems


def _expand(pattern: str, problems: dict[str, str]) -> list[str]:
    unreadable: dict[str, str] = {}
    try:
        matches = sorted(_matches(pattern, "", unreadable), key=natural_key)
    except RecursionError:
        problems[pattern] = "has too many parts for a pattern: name a folder instead"
        return []
    if not matches and not unreadable:
        unreadable[pattern] = "matches no file"
    problems |= unreadable
    return matches


def _matches(pattern: str, root: str, unreadable: dict[str, str]) -> Iterator[str]:
    """Yields the paths below `root` that match, as glob.glob does, but `**` follows no links to folders.

    A link to a folder above it would give each photo 40 times, and two such links would never end.
    """
    import glob  # late: shells expand most patterns themselves

    found = re.search(_ANY_FOLDERS, pattern)
    if not found:
        for match in glob.glob(pattern, root_dir=root or None):  # noqa: PTH207 (may be absolute)
            path = os.path.join(root, match)  # noqa: PTH118 (keeps the user's spelling)
            if not (root and Path(path).is_symlink() and os.path.isdir(path)):
                yield path
        return
    head, tail = pattern[: found.start()], pattern[found.end() :]
    for top in _matches(head, root, unreadable) if head else [root]:
        if not tail:
            yield top or os.curdir
            continue
        for folder, _ in walk(top or os.curdir, lambda error: _note(unreadable, error)):
            below = folder if top else folder.removeprefix(os.curdir).removeprefix(os.sep)
            yield from _matches(tail, below, unreadable)


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


def _note(unreadable: dict[str, str], error: OSError) -> None:
    unreadable[str(error.filename)] = str(error.strerror).lower()


def _photos_below(top: str, problems: dict[str, str]) -> list[str]:
    unreadable: dict[str, str] = {}
    photos = [
        str(Path(folder, name))
        for folder, names in walk(top, lambda error: _note(unreadable, error))
        for name in names
    ]
    if not photos and not unreadable:
        unreadable[top] = "no pictures in this folder"
    problems |= unreadable
    return sorted(photos, key=natural_key)
