from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.preprocess.photo_files import NONE_LABEL
from train.data import negative_pictures, negatives
from train.data.dataset import Dataset, Photo, PhotosError, read_verified
from train.data.manifest import read_manifest, write_manifest
from train.data.negative_pictures import ARCHIVE, KINDS, SIDE, drawings, make_picture
from train.data.negatives import (
    add_default_negatives,
    default_negatives_folder,
    names_without_classes,
    restore_default_negatives,
)

# Made on x86-64. Another processor, NumPy or Pillow must make the same bytes, because runs record their hash.
HASHES = {
    "composited": "f978cf3ffb5897ec64ff79660e1c2062309327dbbf1a6e045f9f88b3b998b4d9",
    "white": "982de19acec313c203da2557bc6268d7e8ac8adafc5a6780108fea7329f270fe",
    "shapes": "10be949802003dd3d6d4fa1ea9cd63b355544f92c4421f1e5a93cab0cd57e1b6",
}


def photos(*classes: str, count: int = 2) -> Dataset:
    found = [
        Photo(f"{name}/{number}.jpg", name, "train", "0" * 64) for name in classes for number in range(count)
    ]
    return Dataset(Path("/photos"), classes, tuple(found))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_archive_is_small_and_holds_transparent_drawings_without_plants() -> None:
    assert ARCHIVE.stat().st_size < 5_000_000
    assert len(drawings()) == 1200
    for name, data in drawings().items():
        assert not any(
            word in name for word in ("flower", "plant", "tulip", "rose", "tree", "leaf", "bouquet")
        )
        with Image.open(io.BytesIO(data)) as drawing:
            assert drawing.format == "WEBP" and max(drawing.size) <= 192
    readme = (ARCHIVE.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() in readme


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_the_same_bytes_on_every_machine(kind: str) -> None:
    digest = hashlib.sha256(b"".join(make_picture(kind, name) for name in [*drawings()][:20]))
    assert digest.hexdigest() == HASHES[kind]


def test_composited_pictures_have_varied_backgrounds() -> None:
    corners, on_white = [], 0
    for name in [*drawings()][:60]:
        pixels = np.asarray(Image.open(io.BytesIO(make_picture("composited", name))), int)
        assert pixels.shape == (SIDE, SIDE, 3)
        corners.append(tuple(pixels[:8, :8].mean((0, 1)) // 16))
        on_white += bool((pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all())
    assert len({*corners}) > 40 and on_white == 0
    white = np.asarray(Image.open(io.BytesIO(make_picture("white", name))))
    assert (white == 255).mean() > 0.2 and (white < 255).any()


def test_default_negatives_are_split_and_written_once(own_cache: Path) -> None:
    few = add_default_negatives(photos("a", "b"), limit=40)
    assert Counter(photo.split for photo in few.negatives) == {"train": 28, "val": 6, "test": 6}
    assert {photo.label for photo in few.negatives} == {NONE_LABEL} and few.classes == ("a", "b")
    assert len({photo.sha256 for photo in few.negatives}) == 40
    for photo in few.negatives:
        assert len(read_verified(few, photo)) > 3 * SIDE * SIDE
    written = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.bmp")}
    assert len(written) == 40 and add_default_negatives(photos("a", "b"), limit=40) == few
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.bmp")} == written


@pytest.mark.slow
@pytest.mark.parametrize(("count", "negatives"), [(10, 300), (400, 800), (700, 1200)])
def test_as_many_negatives_as_photos_are_added_within_bounds(count: int, negatives: int) -> None:
    assert len(add_default_negatives(photos("a", "b", count=count)).negatives) == negatives


def test_a_drawing_that_cannot_be_read_raises_photos_error(own_cache: Path) -> None:
    negative = add_default_negatives(photos("daisy")).negatives[0]
    Path(negative.path).write_bytes(b"")
    with pytest.raises(PhotosError, match=r"\.bmp: is empty; delete this file"):
        add_default_negatives(photos("daisy"))


def test_drawings_of_a_class_are_not_used(own_cache: Path) -> None:
    assert any("orange" in name for name in [*drawings()][:60])
    found = add_default_negatives(photos("Blood Oranges", "pears"), limit=60)
    assert len(found.negatives) == 60
    assert not [photo.path for photo in found.negatives if "orange" in photo.path or "pear" in photo.path]


@pytest.mark.parametrize(("plural", "singular"), [("cherries", "cherry"), ("boxes", "box"), ("cats", "cat")])
def test_a_plural_class_leaves_out_drawings_of_the_singular(plural: str, singular: str) -> None:
    assert any(singular in name for name in drawings())
    assert not [name for name in names_without_classes((plural, "x")) if singular in name]


def test_the_ending_of_a_file_name_is_no_word() -> None:
    assert len(names_without_classes(("web", "net"))) > 1000


def test_without_a_drawing_left_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "drawings", lambda: {"orange.webp": b""})
    with pytest.raises(PhotosError, match="--no-negatives"):
        add_default_negatives(photos("oranges", "pears"))


def test_default_negatives_of_a_run_are_restored_on_another_machine(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = add_default_negatives(photos("a", "b"), limit=5)
    write_manifest(dataset, tmp_path)
    assert "\ndefault:composited-" in (tmp_path / "photos.csv").read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    moved = read_manifest(tmp_path, dataset.root, dataset.classes)
    assert moved.sha256 == dataset.sha256 and moved.photos == dataset.photos
    with pytest.raises(PhotosError, match="No such file"):
        read_verified(moved, moved.negatives[0])
    restore_default_negatives(moved)
    for photo in moved.negatives:
        assert read_verified(moved, photo) == read_verified(
            dataset, next(each for each in dataset.negatives if each.sha256 == photo.sha256)
        )
    manifest = (tmp_path / "photos.csv").read_text()
    (tmp_path / "photos.csv").write_text(manifest.replace("default:composited-1/", "default:composited-0/"))
    with pytest.raises(PhotosError, match="this version makes other default negatives; train the run again"):
        restore_default_negatives(read_manifest(tmp_path, dataset.root, dataset.classes))


def test_a_missing_or_changed_archive_raises_photos_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr(negative_pictures, "ARCHIVE", tmp_path / "drawings.zip")
    drawings.cache_clear()
    try:
        with pytest.raises(PhotosError, match="No such file or directory; restore the file"):
            add_default_negatives(photos("a", "b"))
        with zipfile.ZipFile(tmp_path / "drawings.zip", "w") as archive:
            archive.writestr("apple.webp", b"")
        with pytest.raises(PhotosError, match=r"has been changed; restore .*--no-negatives"):
            add_default_negatives(photos("a", "b"))
    finally:
        drawings.cache_clear()


def test_a_cache_that_cannot_be_written_raises_photos_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(PhotosError, match="Not a directory; set XDG_CACHE_HOME"):
        add_default_negatives(photos("a", "b"), limit=2)
    assert default_negatives_folder().parts[-1] == "negatives"
