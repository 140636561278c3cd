"""Measure how many planted copies are found, and how many different photos are reported as copies.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.near_duplicates > benchmarks/near_duplicates.md

A changed copy of every tenth photo of train/ is planted, one change at a time, and searched among all photos
of train/ (test/ is not used). Pairs found without planted copies are false positives, except
KNOWN_DUPLICATES: a person checked that these show the same picture or scene. The threshold of a single hash
is the highest with at most one false positive per 1,000 photos. ImageHash's crop-resistant hash has its own
threshold and needs a second per photo, so it is measured on fewer photos. Also writes near_duplicates.csv.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from train.data.dataset import Dataset, Photo
from train.data.find_photos import find_photos
from train.data.near_duplicates import MAX_CANDIDATE_DISTANCE, MAX_DISTANCE, near_duplicates

KNOWN_DUPLICATES = {
    frozenset(pair)
    for pair in (
        ("1775233884_12ff5a124f", "2093263381_afd51358a3"),
        ("2588234269_c4bfd0d8b9_n", "2588453601_66f2a03cca_n"),
        ("33885735373_444ba02d9c_n", "34310869690_56cdc84a17_n"),
        ("5635347336_bc1400e939_n", "5700394524_dc6f8fa9cd_n"),
        ("12406418663_af20dc225f_n", "12407768513_3440238148_n"),
        ("13279526615_a3b0059bec", "13342823005_16d3df58df_n"),
        ("17433282043_441b0a07f4_n", "22429946721_e17a12cb39_n"),
        ("10163955604_ae0b830975_n", "10164073235_f29931d91e"),
        ("8980145452_efbd6e3b04", "8980164828_04fbf64f79_n"),
        ("14741813110_94964c39e2_n", "14741907467_fab96f3b2b_n"),
        ("17420983523_2e32d70359", "19440910519_cb1162470e"),
    )
}
EVERY = 10  # a copy of every tenth photo is planted
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(low: float, high: float, place: str) -> Change:
    """Crop a share in [low, high] of width and height: evenly, at a random place, or on one side."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        across, down = rng.uniform(low, high, 2)
        if place == "centre":
            down = across
        left, top = (across / 2, down / 2) if place == "centre" else rng.uniform(0, (across, down))
        edges = [left, top, left + 1 - across, top + 1 - down]
        if place == "one side":
            side = rng.integers(4)
            edges = [across if at == side else 0 for at in (0, 1)] + [
                1 - across if at == side else 1 for at in (2, 3)
            ]
        sides = (image.width, image.height) * 2
        left, top, right, bottom = (round(edge * side) for edge, side in zip(edges, sides, strict=True))
        return image.crop((left, top, right, bottom))

    return change


def change_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(rng.uniform(0.8, 1.2))
    return image


def mirror(image: Image.Image, _: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image)


def half_size(image: Image.Image, _: np.random.Generator) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


# Name: the changes of a copy, then its file format and the options for saving.
CHANGES: dict[str, tuple[list[Change], str, dict[str, Any]]] = {
    "JPEG 90": ([], "jpg", {"quality": 90}),
    "JPEG 60": ([], "jpg", {"quality": 60}),
    "JPEG 30": ([], "jpg", {"quality": 30}),
    "WebP 50": ([], "webp", {"quality": 50}),
    "half the size, JPEG 85": ([half_size], "jpg", {"quality": 85}),
    "mirrored, JPEG 85": ([mirror], "jpg", {"quality": 85}),
    "colours ± 20 %, JPEG 85": ([change_colours], "jpg", {"quality": 85}),
    "5-10 % cropped, centre": ([crop(0.05, 0.1, "centre")], "jpg", {"quality": 85}),
    "10-20 % cropped, centre": ([crop(0.1, 0.2, "centre")], "jpg", {"quality": 85}),
    "5-10 % cropped, off-centre": ([crop(0.05, 0.1, "random")], "jpg", {"quality": 85}),
    "10-20 % cropped, off-centre": ([crop(0.1, 0.2, "random")], "jpg", {"quality": 85}),
    "5-20 % cropped, one side": ([crop(0.05, 0.2, "one side")], "jpg", {"quality": 85}),
    "20-40 % cropped, centre": ([crop(0.2, 0.4, "centre")], "jpg", {"quality": 85}),
    "20-40 % cropped, off-centre": ([crop(0.2, 0.4, "random")], "jpg", {"quality": 85}),
    "5-20 % cropped off-centre, mirrored, half, colours, JPEG 60": (
        [crop(0.05, 0.2, "random"), mirror, half_size, change_colours],
        "jpg",
        {"quality": 60},
    ),
}


def main() -> None:
    dataset = one_class_each(
        find_photos(Path(os.environ["VGG_EDGE_PHOTOS"]) / "train", val_share=0, test_share=0)
    )
    chosen = dataset.photos[::EVERY]
    with tempfile.TemporaryDirectory() as scratch:
        planted = {
            name: plant(dataset, chosen, name, Path(scratch) / str(i)) for i, name in enumerate(CHANGES)
        }
        methods = {
            "pHash": single_hash(imagehash.phash, dataset, planted),
            "dHash": single_hash(imagehash.dhash, dataset, planted),
            "crop-resistant": crop_resistant(dataset, chosen, planted),
            **grid_of_crops(dataset, planted, Path(scratch)),
        }
    rows = [
        ["copies found, %", *methods],
        *([name, *(f"{100 * found[name]:.0f}" for found, _, _ in methods.values())] for name in CHANGES),
        ["threshold, bits", *(threshold for _, threshold, _ in methods.values())],
        ["false positives", *(false for _, _, false in methods.values())],
    ]
    with Path(__file__).with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"{len(chosen)} copies planted, one change at a time, among {len(dataset.photos):,} photos.")
    print(f"{describe_machine()}\n")
    print(table_head(*rows[0]))
    for row in rows[1:]:
        print(table_row(*row))


def one_class_each(dataset: Dataset) -> Dataset:
    """The data set with a separate class for each photo, so that every pair is compared."""
    photos = tuple(replace(photo, label=str(at)) for at, photo in enumerate(dataset.photos))
    return replace(dataset, photos=photos)


def plant(dataset: Dataset, chosen: Sequence[Photo], name: str, folder: Path) -> list[Path]:
    changes, suffix, options = CHANGES[name]
    folder.mkdir()
    files = []
    for at, photo in enumerate(chosen):
        rng = np.random.default_rng([at, len(changes)])
        image = Image.open(dataset.root / photo.path).convert("RGB")
        for change in changes:
            image = change(image, rng)
        files.append(folder / f"{at}.{suffix}")
        image.save(files[-1], **options)
    return files


# The share of copies found by change, the threshold, and the false positives.
Result = tuple[dict[str, float], str, str]


def single_hash(
    method: Callable[[Image.Image], imagehash.ImageHash],
    dataset: Dataset,
    planted: dict[str, list[Path]],
) -> Result:
    """The result of one hash of the whole photo."""

    def bits(paths: Sequence[Path]) -> NDArray[Any]:
        return np.array([method(Image.open(path)).hash.ravel() for path in paths])

    real = bits([dataset.root / photo.path for photo in dataset.photos])
    distances = (real[:, None] != real).sum(-1)
    false = sorted(
        int(distances[one, two])
        for one, two in zip(*np.triu_indices(len(real), 1), strict=True)
        if distances[one, two] < 16 and not is_known(dataset.photos[one], dataset.photos[two])
    )
    threshold = highest_threshold(false, len(real))
    return (
        {
            name: float(((bits(files) != real[::EVERY]).sum(-1) <= threshold).mean())
            for name, files in planted.items()
        },
        f"{threshold} of {real.shape[1]}",
        f"{sum(value <= threshold for value in false)} in {len(real):,}",
    )


def crop_resistant(dataset: Dataset, chosen: Sequence[Photo], planted: dict[str, list[Path]]) -> Result:
    """The result of one hash per segment.

    Source: Steinebach, Liu & Yannikos, "Efficient Cropping-Resistant Robust Image Hashing", ARES 2014.
    """

    def segment_hashes(path: Path) -> imagehash.ImageMultiHash:
        return imagehash.crop_resistant_hash(Image.open(path).convert("RGB"))

    sample = chosen[::4]
    real = [segment_hashes(dataset.root / photo.path) for photo in sample]
    false = sum(
        one.matches(two) and not is_known(sample[at], sample[other])
        for at, one in enumerate(real)
        for other, two in enumerate(real[:at])
    )
    found = {
        name: float(
            np.mean([segment_hashes(files[4 * at]).matches(real[at]) for at in range(0, len(sample), 3)])
        )
        for name, files in planted.items()
    }
    return found, "25 % of a segment", f"{false} in {len(real)}"


def grid_of_crops(dataset: Dataset, planted: dict[str, list[Path]], scratch: Path) -> dict[str, Result]:
    """The results of train/data/near_duplicates.py at its own threshold and at two others."""
    started = time.perf_counter()
    false = sorted(
        pair.distance
        for pair in near_duplicates(dataset, scratch / "cache", MAX_CANDIDATE_DISTANCE)
        if pair.stands_out and not is_known(pair.photo, pair.other)
    )
    seconds = time.perf_counter() - started
    found = {}
    for name, files in planted.items():
        copies = with_copies(dataset, files)
        pairs = near_duplicates(copies, scratch / "cache", MAX_CANDIDATE_DISTANCE)
        place = {photo.path: at for at, photo in enumerate(copies.photos)}
        best = np.full(len(files), 192)
        for pair in pairs:
            one, two = sorted((place[pair.photo.path], place[pair.other.path]))
            if pair.stands_out and two >= len(dataset.photos) and EVERY * (two - len(dataset.photos)) == one:
                best[two - len(dataset.photos)] = min(best[two - len(dataset.photos)], pair.distance)
        found[name] = best
    return {
        f"vgg-edge, {bound} bits{f' ({seconds:.0f} s)' if bound == MAX_DISTANCE else ''}": (
            {name: float((best <= bound).mean()) for name, best in found.items()},
            f"{bound} of 192",
            f"{sum(value <= bound for value in false)} in {len(dataset.photos):,}",
        )
        for bound in (16, MAX_DISTANCE, 24)
    }


def with_copies(dataset: Dataset, files: Sequence[Path]) -> Dataset:
    """The data set with the copies in `files` as its test split."""
    import hashlib

    copies = tuple(
        Photo(str(file), str(at * EVERY), "test", hashlib.sha256(file.read_bytes()).hexdigest())
        for at, file in enumerate(files)
    )
    return replace(dataset, photos=dataset.photos + copies)


def is_known(one: Photo, two: Photo) -> bool:
    return frozenset((Path(one.path).stem, Path(two.path).stem)) in KNOWN_DUPLICATES


def highest_threshold(false: Sequence[int], photos: int) -> int:
    """The highest threshold with at most one false positive per 1,000 photos."""
    allowed = photos // 1000
    return false[allowed] - 1 if len(false) > allowed else 15


if __name__ == "__main__":
    main()
