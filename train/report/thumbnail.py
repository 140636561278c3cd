"""Small copies of photos as data: URIs, and how the report names photos outside the data set's folder."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from runtime.common.errors import PictureError
from runtime.common.text import printable
from runtime.preprocess.picture import read_picture
from train.data.dataset import Dataset
from train.data.negatives import default_negatives_folder

THUMBNAIL = 160  # pixels per side


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of a photo as a data: URI, or the reason why it is missing."""

    uri: str
    missing: str = ""


def thumbnail(dataset: Dataset, path: str) -> Thumbnail:
    """The small copy of the photo at `path`."""
    file = dataset.root / path
    try:
        picture = Image.fromarray(read_picture(file, (THUMBNAIL, THUMBNAIL)))
    except PictureError as error:  # the photo was readable before, but may have been moved
        return Thumbnail("", str(error).removeprefix(f"{file}: "))
    return Thumbnail(data_uri(picture, "jpeg"))


def data_uri(picture: Image.Image, kind: str) -> str:
    """A data: URI that holds the picture in the file format `kind`."""
    data = io.BytesIO()
    picture.save(data, kind, quality=80, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def shown_path(dataset: Dataset, path: str) -> str:
    """A photo's path without folders above the data set's: the report may be shared."""
    if dataset.added_root and Path(path).is_relative_to(dataset.added_root):
        return (dataset.added_root.name / Path(path).relative_to(dataset.added_root)).as_posix()
    return Path(path).name if Path(path).is_absolute() else path


def shown_reason(dataset: Dataset, reason: str) -> str:
    """The reason to leave out a photo, which may name another photo, without such folders."""
    shown = {folder: "" for folder in (default_negatives_folder(), dataset.negatives_root) if folder}
    if dataset.added_root:
        shown[dataset.added_root] = f"{dataset.added_root.name}/"
    for folder in sorted(shown, key=lambda folder: -len(folder.parts)):  # a folder may be in another one
        reason = reason.replace(printable(f"{folder}/"), shown[folder])
    return reason
