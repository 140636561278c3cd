"""Which photos a user means by files, folders and patterns."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

# What counts as a picture in a folder. A file that is named itself is read whatever its suffix is.
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
            import glob  # late: shells expand most patterns themselves

            matches = sorted(glob.glob(argument, recursive=True), key=natural_key)  # noqa: PTH207 (may be absolute)
            if not matches:
                problems[argument] = "matches no file"
        for match in matches:
            if os.path.isdir(match):
                photos += _photos_below(match, problems)
            else:
                photos.append(match)
    return photos, problems


def natural_key(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts photo10 after photo9."""
    parts = re.split("([0-9]+)", name.casefold())
    return [(int(part), "") if at % 2 else (0, part) for at, part in enumerate(parts)]


def _photos_below(top: str, problems: dict[str, str]) -> list[str]:
    photos: list[str] = []
    unreadable: dict[str, str] = {}
    for folder, folders, files in os.walk(
        top, onerror=lambda error: unreadable.update({str(error.filename): str(error.strerror).lower()})
    ):
        # Hidden names are thumbnails, trash, and the copies that macOS leaves on memory cards.
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(folder, name) for name in files if not name.startswith(".")]
        photos += [str(path) for path in paths if path.suffix.lower() in SUFFIXES]
    if not photos and not unreadable:
        unreadable[top] = "no pictures in this folder"
    problems |= unreadable
    return sorted(photos, key=natural_key)
