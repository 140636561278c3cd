"""Near-duplicate detection: planted copies are found and no others, and results are cached."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from runtime.common.errors import PictureError, UserError
from train.data import near_duplicates as module
from train.data.added_photos import add_photos
from train.data.find_photos import find_photos
from train.data.near_duplicates import Pair, check_near_duplicates, near_duplicates, write_pairs

COUNT = 8  # pictures a class; every one has a copy planted in test/


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    """Blots of every size and noise: no two have anything in common."""
    chance = np.random.default_rng(0)
    pictures = []
    for _ in range(2 * COUNT):
        blots = np.zeros((240, 320, 3))
        for cells in (4, 9, 20):
            grid = Image.fromarray(chance.integers(0, 256, (cells, cells, 3), np.uint8))
            blots += np.asarray(grid.resize((320, 240), Image.Resampling.BICUBIC), float) / 3
        noise = chance.normal(0, 6, blots.shape)
        pictures.append(Image.fromarray((blots + noise).clip(0, 255).astype(np.uint8)))
    return pictures


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))


CHANGES = {
    "encoded again": lambda image: image,
    "half the size": lambda image: image.resize((160, 120)),
    "mirrored": ImageOps.mirror,
    "other light": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "5 % cut, centre": lambda image: cropped(image, 0.025, 0.025, 0.975, 0.975),
    "20 % cut, centre": lambda image: cropped(image, 0.1, 0.1, 0.9, 0.9),
    "20 % cut from every side": lambda image: cropped(image, 0.2, 0.2, 0.8, 0.8),
    "15 % cut, off-centre": lambda image: cropped(image, 0.03, 0.12, 0.88, 0.97),
    "17 % and 7 % cut": lambda image: cropped(image, 0.13, 0.05, 0.96, 0.98),
    "below cut": lambda image: cropped(image, 0, 0, 1, 0.85),
    "mirrored and cropped": lambda image: cropped(ImageOps.mirror(image), 0.06, 0, 0.92, 0.88),
}  # fmt: skip


def plant(originals: list[Image.Image], root: Path, change: str, **how: int) -> Path:
    """train/ holds the originals in two classes, test/ a changed copy of each."""
    for number, image in enumerate(originals):
        for split, picture in (("train", image), ("test", CHANGES[change](image))):
            folder = root / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            suffix, quality = ("jpg", 95) if split == "train" else ("webp" if number % 3 else "jpg", 40)
            picture.save(folder / f"{number}.{suffix}", quality=quality)
    return root


@pytest.fixture(scope="module")
def planted(originals: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(originals, tmp_path_factory.mktemp("planted"), "15 % cut, off-centre")


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found_and_nothing_else(
    change: str, originals: list[Image.Image], planted: Path, tmp_path: Path
) -> None:
    root = plant(originals, tmp_path / "photos", change)
    # One cache for all, so that the originals are hashed once.
    pairs = near_duplicates(find_photos(root, val_share=0), planted.with_name("cache"))
    found = {(pair.photo.path, pair.other.path) for pair in pairs}
    numbers = [(Path(one).stem, Path(two).stem) for one, two in found]
    assert all(one == two for one, two in numbers)
    assert len(found) >= 0.9 * len(originals)
    assert all((pair.photo.split, pair.other.split) == ("train", "test") for pair in pairs)


def test_photos_that_become_readable_are_compared(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as HEIC, after pip install '.[heic]'."""
    dataset = find_photos(planted, val_share=0)

    def refuse(*_: object) -> None:
        raise PictureError("is HEIC")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_picture", refuse)
        assert near_duplicates(dataset, tmp_path) == []
    assert len(near_duplicates(dataset, tmp_path)) > COUNT


def test_drawn_flowers_are_not_near_duplicates(synthetic_photos: Path, tmp_path: Path) -> None:
    dataset = find_photos(synthetic_photos)
    apart = tuple(
        replace(photo, label=str(at)) for at, photo in enumerate(dataset.photos)
    )  # all are compared
    assert near_duplicates(replace(dataset, photos=apart), tmp_path) == []


def test_swapping_the_splits_gives_the_same_pairs(planted: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(planted / "train", swapped / "test")
    shutil.copytree(planted / "test", swapped / "train")
    one = near_duplicates(find_photos(planted, val_share=0), tmp_path / "one")
    two = near_duplicates(find_photos(swapped, val_share=0), tmp_path / "two")
    assert one and {(pair.photo.sha256, pair.other.sha256, pair.distance) for pair in one} == {
        (pair.other.sha256, pair.photo.sha256, pair.distance) for pair in two
    }


def test_pairs_are_in_different_splits_or_classes(planted: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(planted / "train", root)
    image = Image.open(root / "a" / "0.jpg")
    image.save(root / "a" / "again.jpg", quality=50)
    image.save(root / "b" / "wrong.jpg", quality=60)
    dataset = find_photos(root, val_share=0, test_share=0)
    found = [(pair.photo.path, pair.other.path) for pair in near_duplicates(dataset, tmp_path / "cache")]
    assert found == [("a/0.jpg", "b/wrong.jpg"), ("a/again.jpg", "b/wrong.jpg")]


def test_report_prints_the_pairs_and_keeps_all_photos(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = find_photos(planted, val_share=0)
    same, pairs = check_near_duplicates(dataset, tmp_path, "report")
    assert same is dataset
    lines = capsys.readouterr().out.splitlines()
    assert f" {len(pairs)} pairs in different splits" in lines[0] and "--near-duplicates drop" in lines[0]
    assert lines[1].startswith("near-duplicates: train/a/0.jpg and test/a/0.")
    assert f" {len(pairs) - 3} more" in lines[4] and "near_duplicates.csv" in lines[4]
    assert len(lines) == 5
    write_pairs(pairs, tmp_path)
    rows = list(csv.DictReader((tmp_path / "near_duplicates.csv").open(encoding="utf-8")))
    assert len(rows) == len(pairs)
    assert rows[0] == {
        "path": "train/a/0.jpg",
        "split": "train",
        "label": "a",
        "other_path": pairs[0].other.path,
        "other_split": "test",
        "other_label": "a",
        "distance": str(pairs[0].distance),
    }


def test_a_copy_in_another_class_is_printed(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(planted / "train", tmp_path / "photos")
    Image.open(root / "a" / "0.jpg").save(root / "b" / "wrong\x1b[2J.jpg", quality=60)
    check_near_duplicates(find_photos(root, val_share=0, test_share=0), tmp_path / "cache", "report")
    summary, pair = capsys.readouterr().out.splitlines()
    assert "1 pair in different classes" in summary
    assert pair == r"near-duplicates: a/0.jpg and b/wrong\x1b[2J.jpg"


def test_drop_keeps_the_test_photos(planted: Path, tmp_path: Path) -> None:
    root = shutil.copytree(planted, tmp_path / "photos")
    for file in (*root.glob("test/*/[4-9].*"), *root.glob("test/*/1?.*")):
        file.unlink()
    dataset = find_photos(root, val_share=0)
    kept, pairs = check_near_duplicates(dataset, tmp_path / "cache", "drop")
    assert len(pairs) == 4 and kept.split("test") == dataset.split("test")
    assert {photo.path for photo in dataset.photos} - {photo.path for photo in kept.photos} == {
        pair.photo.path for pair in pairs
    }
    assert kept.left_out[0].path == "train/a/0.jpg"
    assert kept.left_out[0].reason.startswith("is a near-duplicate of test/a/0.")


def test_negatives_near_a_photo_of_a_class_are_left_out(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(planted / "train", tmp_path / "photos")
    (root / "none").mkdir()
    for number, picture in enumerate((root / "a" / "0.jpg", *sorted((planted / "test" / "a").iterdir())[:1])):
        Image.open(picture).save(root / "none" / f"copy{number}.png")
    for name in ("composited", "frame"):
        noise = np.random.default_rng(5).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(root / "none" / f"{name}.jpg", quality=90 if name == "frame" else 80)
    dataset = find_photos(root, val_share=0.3, test_share=0)
    for action in ("report", "drop"):
        kept, pairs = check_near_duplicates(dataset, tmp_path / "cache", action)
        assert kept.photos == dataset.photos and pairs == [], "the report asks nothing about these pairs"
        # The two frames are near-duplicates of each other, as frames of one scene are.
        assert [photo.path for photo in kept.negatives] == ["none/composited.jpg", "none/frame.jpg"]
        assert all(item.path.startswith("none/copy") for item in kept.left_out)
        assert kept.left_out[0].reason.startswith("is a near-duplicate of a/") and len(kept.left_out) == 2
        assert "2 pairs of a photo of a class and one of none of the classes" in capsys.readouterr().out
    assert check_near_duplicates(dataset, tmp_path / "cache", "ignore") == (dataset, None)
    for name in ("composited", "frame"):
        (root / "none" / f"{name}.jpg").unlink()
    with pytest.raises(UserError, match="every photo of none of the classes is a near-duplicate"):
        check_near_duplicates(find_photos(root, val_share=0), tmp_path / "cache", "report")


def test_dropping_a_whole_class_raises_user_error(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class a has no readable training photo.*--near-duplicates report"):
        check_near_duplicates(find_photos(planted, val_share=0), tmp_path, "drop")


def test_ignore_reads_no_photo(planted: Path, tmp_path: Path) -> None:
    dataset = find_photos(planted, val_share=0)
    assert check_near_duplicates(dataset, tmp_path / "cache", "ignore") == (dataset, None)
    assert not (tmp_path / "cache").exists()


def test_hashes_and_pairs_are_cached(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(planted, tmp_path / "photos")
    dataset = find_photos(root, val_share=0)
    first = near_duplicates(dataset, tmp_path / "cache")
    assert "hashing: 32 of 32 photos" in capsys.readouterr().err
    file = next(tmp_path.rglob("hashes.sqlite"))
    os.utime(file, (0, 0))
    assert near_duplicates(dataset, tmp_path / "cache") == first
    assert capsys.readouterr().err == ""
    assert file.stat().st_mtime > 0  # it counts as used
    Image.open(root / "train" / "a" / "0.jpg").rotate(90).save(root / "train" / "a" / "new.jpg")
    more = near_duplicates(find_photos(root, val_share=0), tmp_path / "cache")
    assert "hashing: 1 of 1 photos" in capsys.readouterr().err
    assert [(pair.photo, pair.other, pair.distance) for pair in more] == [
        (pair.photo, pair.other, pair.distance) for pair in first
    ]


def test_unreadable_photos_are_skipped(planted: Path, tmp_path: Path) -> None:
    root = shutil.copytree(planted, tmp_path / "photos")
    (root / "train" / "a" / "0.jpg").write_text("not a picture")
    pairs = near_duplicates(find_photos(root, val_share=0), tmp_path / "cache")
    assert len(pairs) >= 14 and "train/a/0.jpg" not in {pair.photo.path for pair in pairs}


def test_pairs_are_not_cached_if_a_photo_changed(planted: Path, tmp_path: Path) -> None:
    root = shutil.copytree(planted, tmp_path / "photos")
    dataset = find_photos(root, val_share=0)
    photo, other = root / "train" / "a" / "0.jpg", root / "train" / "b" / "1.jpg"
    kept = photo.read_bytes()
    photo.write_bytes(other.read_bytes())
    pairs = near_duplicates(dataset, tmp_path / "cache")
    assert "train/a/0.jpg" not in {pair.photo.path for pair in pairs}
    photo.write_bytes(kept)
    assert near_duplicates(dataset, tmp_path / "cache") == near_duplicates(dataset, tmp_path / "another")


def test_a_damaged_cache_raises_user_error(planted: Path, tmp_path: Path) -> None:
    dataset = find_photos(planted, val_share=0)
    near_duplicates(dataset, tmp_path)
    file = next(tmp_path.rglob("hashes.sqlite"))
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"hashes\.sqlite: file is not a database") as raised:
        near_duplicates(dataset, tmp_path)
    assert "\n" not in str(raised.value)


def test_too_many_photos_are_not_compared(
    originals: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = find_photos(plant(originals, tmp_path / "photos", "mirrored"), val_share=0)
    monkeypatch.setattr(module, "MAX_PHOTOS_WITH_CROPS", 31)
    assert len(near_duplicates(dataset, tmp_path / "cache")) == len(originals)
    assert "over 31 photos" in capsys.readouterr().out
    monkeypatch.setattr(module, "MAX_PHOTOS", 31)
    assert near_duplicates(dataset, tmp_path / "cache") == []
    assert "skipped, because there are over 31 photos" in capsys.readouterr().out


def test_the_pairs_of_a_video_are_bounded(tmp_path: Path, originals: list[Image.Image]) -> None:
    """All photos are near each other; only the nearest of each become pairs."""
    for number in range(20):
        folder = tmp_path / "photos" / ("train", "test")[number % 2] / "ab"[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        originals[0].save(folder / f"{number}.jpg", quality=60 + number)
    pairs = near_duplicates(find_photos(tmp_path / "photos", val_share=0), tmp_path / "cache")
    assert 20 <= len(pairs) <= 20 * module.CANDIDATES_PER_PHOTO


def test_the_block_size_does_not_change_the_pairs(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_photos(planted, val_share=0)
    whole = near_duplicates(dataset, tmp_path / "one")
    monkeypatch.setattr(module, "DISTANCES_PER_BLOCK", 1)
    assert near_duplicates(dataset, tmp_path / "two") == whole != []


@pytest.fixture(scope="module")
def uniform(originals: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Different photos that all look alike, as those of one machine, and a copy of one of them."""
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("uniform") / "photos"
    for number in range(28):
        own = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((320, 240))
        picture = Image.blend(originals[0], own, 0.12)
        folder = root / ("train", "test")[number % 2] / "ab"[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.jpg", quality=90)
        if number == 4:
            picture.resize((200, 150)).save(root / "test" / "a" / "copy.jpg", quality=50)
    return root


def test_only_the_copy_stands_out_among_photos_that_all_look_alike(
    uniform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = find_photos(uniform, val_share=0)
    alike = near_duplicates(dataset, tmp_path)
    assert len(alike) >= 25, "photos that are within MAX_DISTANCE of each other"
    capsys.readouterr()
    kept, pairs = check_near_duplicates(dataset, tmp_path, "drop")
    assert [(pair.photo.path, pair.other.path) for pair in pairs] == [("train/a/4.jpg", "test/a/copy.jpg")]
    assert [item.path for item in kept.left_out] == ["train/a/4.jpg"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert f" {len(alike) - 1} other pairs look alike" in last and "frames of one video?" in last


@pytest.mark.parametrize(
    ("distance", "usual", "stands_out"),
    [(20, 50, True), (20, 49, False), (7, 18, True), (8, 18, False), (4, 0, True), (5, 5, False)],
)
def test_a_pair_stands_out_by_the_distances_of_its_neighbours(
    uniform: Path, distance: int, usual: int, stands_out: bool
) -> None:
    one, two, *_ = find_photos(uniform, val_share=0).photos
    assert Pair(one, two, distance, usual).stands_out == stands_out


def test_near_duplicates_of_added_photos_are_printed(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(planted / "test", tmp_path / "photos")
    added = shutil.copytree(planted / "train", tmp_path / "taught")
    shutil.rmtree(added / "b")
    for file in sorted(added.glob("*/*"))[3:]:
        file.unlink()
    for folder in (root / "a", root / "b"):  # photos to train on that nothing is near
        noise = np.random.default_rng(ord(folder.name)).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / "noise.png")
    dataset = find_photos(root, val_share=0, test_share=0.9)
    with_added = add_photos(dataset, added)
    capsys.readouterr()
    _, pairs = check_near_duplicates(with_added, tmp_path / "cache", "report")
    in_test = [pair for pair in pairs if pair.other.split == "test"]
    assert in_test and all(Path(pair.photo.path).parent == added / "a" for pair in in_test)
    lines = capsys.readouterr().out.splitlines()
    assert f"near-duplicates: {len(in_test)} pairs of these with a photo of --add in train" in lines
    assert lines[2].startswith(f"near-duplicates: {added}/a/")
    kept, _ = check_near_duplicates(with_added, tmp_path / "cache", "drop")
    assert kept.split("test") == dataset.split("test")
    assert {item.path for item in kept.left_out} >= {pair.photo.path for pair in in_test}
