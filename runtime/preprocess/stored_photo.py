"""A photo that the runtime stores: its JPEG, and its id, which is the name of its file.

An id is the time when the photo was added and a part of the sha256 of its bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.preprocess.picture import Pixels

MAX_SIDE = 960  # pixels per side, as of a frame of the page
JPEG_QUALITY = 90
MAX_PHOTO_BYTES = 2**20  # random pixels of MAX_SIDE x MAX_SIDE have 0.8 MB

_TIME_FORMAT = "%Y%m%dT%H%M%S%fZ"
# Not the year 9999: after its last moment there is no time for the next photo.
_ID = re.compile(
    r"(?!9999)(\d{4})(\d\d)(\d\d)T(?:[01]\d|2[0-3])(?:[0-5]\d){2}\d{6}Z_[0-9a-f]{16}\.jpg", re.ASCII
)


def encode_photo(pixels: Pixels) -> bytes:
    """Returns pixels, uint8 [H, W, 3], RGB, as a JPEG of at most MAX_SIDE pixels per side."""
    from PIL import Image  # late: classifying does not need it

    out, picture = io.BytesIO(), Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def id_ending(data: bytes) -> str:
    """Returns the end of the ids of a photo with these bytes: equal photos have it in common."""
    return f"_{hashlib.sha256(data).hexdigest()[:16]}.jpg"


def new_id(ending: str, newest: str = "") -> str:
    """Returns an id with the time of now, or just after the id `newest`: a board without a battery starts
    with a clock of the past, and the oldest photos are deleted first.
    """
    now = datetime.now(timezone.utc)
    if newest:
        now = max(now, added_at(newest) + timedelta(microseconds=1))
    return f"{now:{_TIME_FORMAT}}{ending}"


def is_id(text: str) -> bool:
    """Whether a text is an id. Its time exists, so that `added_at` and `new_id` accept it."""
    if found := _ID.fullmatch(text):
        with suppress(ValueError):  # a day such as the 30th of February
            date.fromisoformat("-".join(found.groups()))  # ten times faster than added_at
            return True
    return False


def added_at(id: str) -> datetime:
    """Returns when the photo with this id was added, UTC."""
    return datetime.strptime(id.partition("_")[0], _TIME_FORMAT).replace(tzinfo=timezone.utc)
