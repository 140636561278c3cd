"""The number of test photos on which an export compares each file."""

from __future__ import annotations

from dataclasses import dataclass

from export.parity.gates import GATES, MIN_PHOTOS

# An uncompressed model takes about 8 times as long per photo as a compressed one.
UNCOMPRESSED_PHOTOS = MIN_PHOTOS
EVERY_PHOTO = 60  # for bounds that hold for every photo: a conversion that fails, fails on most photos


@dataclass(frozen=True)
class PhotoCounts:
    """Numbers of test photos."""

    most: int  # for precisions with bounds on shares of the photos; the trained model runs on these
    every_photo: int  # for precisions whose bounds hold for every photo

    def of(self, precision: str) -> int:
        return self.most if GATES[precision].needs_many_photos else self.every_photo


def photo_counts(available: int, requested: int | None, *, compressed: bool) -> PhotoCounts:
    """How many of the `available` photos to use. With `requested`, all files get this number."""
    if requested is not None:
        most = every_photo = requested
    elif compressed:
        most = every_photo = available
    else:
        most, every_photo = UNCOMPRESSED_PHOTOS, EVERY_PHOTO
    return PhotoCounts(min(most, available), min(every_photo, available))
