"""Find near-duplicates: the same picture encoded again, resized, cropped, mirrored or with other colors.

A model that is tested on a crop of a training photo looks more accurate than it is. Each photo is hashed
whole, mirrored and in a grid of crops (train/data/picture_hashes.py). Two photos are a pair if the whole of
one is near a crop of the other, after the edges of the crop are moved to the best fit, and much nearer than
their other neighbours: photos of one fixed camera are all near each other. Hashes and pairs are cached by the
photos' bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import PictureError
from runtime.common.text import printable
from runtime.preprocess.photo_files import NONE_LABEL
from runtime.preprocess.picture import PICTURE_VERSION, read_picture
from train.data.dataset import SPLITS, Dataset, LeftOut, Photo, PhotosError, read_hashed
from train.data.hash_store import HashStore, PairRow
from train.data.manifest import write_csv
from train.data.negatives import own_negatives
from train.data.picture_hashes import BITS, GRID, HASH_VERSION, SIDE, Box, fitted_distance, picture_hashes
from train.progress import Progress

# In bits, after the crop is fitted. Measured by benchmarks/near_duplicates.py: nearly all planted copies are
# within it, and no two different photos.
MAX_DISTANCE = 20
# In bits, in the grid of crops before fitting: 5 of 100 photos have such a candidate by chance.
MAX_CANDIDATE_DISTANCE = 40
# A pair stands out if its distance is at most this share of the distance of the NEIGHBOURS-th nearest photo,
# or at most SAME_PICTURE bits. Of 1,722 pairs of uniform solar cells within MAX_DISTANCE, 42 stand out, and
# 545 of 877 pairs of cells with a texture (docs/decisions.md).
MAX_SHARE = 0.4
NEIGHBOURS = 10
SAME_PICTURE = 4  # a file that was only encoded again or resized
# The time grows with the square of the number of photos. Extrapolated to 2 busy cores: 5 minutes for 20,000
# photos with crops, 15 minutes for 200,000 without.
MAX_PHOTOS_WITH_CROPS = 20_000
MAX_PHOTOS = 200_000
CANDIDATES_PER_PHOTO = 5  # a bound for the frames of a video, which are all near each other
DISTANCES_PER_BLOCK = 1 << 25  # 128 MB
SHOWN = 3  # printed pairs of each kind


@dataclass(frozen=True)
class Pair:
    """Two photos that look alike. `distance` is the number of differing bits of their hashes, of BITS, and
    `usual_distance` the distance from one of them to its NEIGHBOURS-th nearest photo, the smaller of both.
    """

    photo: Photo
    other: Photo
    distance: int
    usual_distance: int = BITS

    @property
    def stands_out(self) -> bool:
        """Whether the photos are much nearer to each other than to their other neighbours."""
        return self.distance <= max(SAME_PICTURE, MAX_SHARE * self.usual_distance)


def check_near_duplicates(dataset: Dataset, cache: Path, action: str) -> tuple[Dataset, list[Pair] | None]:
    """The data set and its pairs of photos of classes that stand out, which are printed too; None for the
    pairs if they are not searched. `action` is a choice of --near-duplicates.

    "drop" removes one photo of each pair in different splits, "report" removes none, "ignore" skips the
    search. "drop" and "report" remove negatives that are near-duplicates of a photo of a class. Raises
    UserError if the cache cannot be used, or if no negative or no training photo of a class would be left.
    """
    if action == "ignore":
        return dataset, None
    alike = near_duplicates(dataset, cache)
    pairs = [pair for pair in alike if pair.stands_out]
    dataset = _without_negatives(dataset, pairs, "--near-duplicates ignore")
    between_classes = [pair for pair in pairs if not _is_negative(pair)]
    _print_pairs(dataset, between_classes, action)
    _print_usual(len(alike) - len(pairs))
    if action == "report":
        return dataset, between_classes
    try:
        return dataset.without(_dropped(between_classes)), between_classes
    except PhotosError as error:
        raise PhotosError(f"{error}, or use --near-duplicates report, which keeps both photos") from None


def without_near_duplicate_negatives(dataset: Dataset, cache: Path) -> Dataset:
    """The data set without the negatives that are near-duplicates of a photo of a class, which are printed.

    Raises UserError as `check_near_duplicates`.
    """
    return _without_negatives(dataset, [pair for pair in near_duplicates(dataset, cache) if pair.stands_out])


def near_duplicates(dataset: Dataset, cache: Path, max_distance: int = MAX_DISTANCE) -> list[Pair]:
    """Pairs in different splits or with different labels, sorted by path; hashes are stored under `cache`.
    They include pairs that do not stand out.

    `Pair.photo` is in the earlier split of train, val, test. Negatives are compared with photos of classes
    only, because frames of one scene are near each other, and default negatives are not compared. Photos that
    cannot be read, or that changed since they were hashed, are skipped: feature extraction reports them. With
    over MAX_PHOTOS_WITH_CROPS photos crops are not compared, and with over MAX_PHOTOS nothing is; both print
    a line.
    Raises UserError if the cache cannot be used.
    """
    dataset = replace(dataset, negatives=own_negatives(dataset))
    photos = (*dataset.photos, *dataset.negatives)
    if len(photos) > MAX_PHOTOS:
        print(f"near-duplicates: skipped, because there are over {MAX_PHOTOS:,} photos")
        return []
    boxes = GRID if len(photos) <= MAX_PHOTOS_WITH_CROPS else GRID[:1]
    if len(boxes) == 1:
        print(f"near-duplicates: crops are skipped, because there are over {MAX_PHOTOS_WITH_CROPS:,} photos")
    folder = cache / f"hashes{HASH_VERSION}-picture{PICTURE_VERSION}-{len(boxes)}"
    with closing(HashStore(folder)) as store:
        rows = store.pairs(dataset.sha256)
        if rows is None:
            reader = _Reader(dataset.root)
            rows = _compare(photos, _all_hashes(photos, boxes, store, reader), boxes, reader)
            if not reader.failed:  # an incomplete result must not be stored: a package may read it later
                store.add_pairs(dataset.sha256, rows)
    by_sha256 = {photo.sha256: photo for photo in photos}
    pairs = []
    for one, two, distance, usual in rows:
        found = by_sha256[one], by_sha256[two]
        photo, other = sorted(found, key=lambda p: (SPLITS.index(p.split), p.path))
        if distance <= max_distance:
            pairs.append(Pair(photo, other, distance, usual))
    return sorted(pairs, key=lambda pair: (pair.photo.path, pair.other.path))


def write_pairs(pairs: Iterable[Pair], folder: Path) -> None:
    """Write near_duplicates.csv: path, split and label of both photos, and the distance in bits."""
    columns = ("path", "split", "label", "other_path", "other_split", "other_label", "distance")
    rows = []
    for pair in pairs:
        one, two = pair.photo, pair.other
        rows.append((one.path, one.split, one.label, two.path, two.split, two.label, pair.distance))
    write_csv(folder / "near_duplicates.csv", columns, rows)


@dataclass
class _Reader:
    """Reads photos as pictures [SIDE, SIDE, 3]. `failed` is set once a photo cannot be read."""

    root: Path
    failed: bool = False

    def __call__(self, photo: Photo) -> NDArray[np.uint8] | None:
        """The picture, or None for a photo that cannot be read."""
        try:
            return read_picture(read_hashed(self.root, photo), (SIDE, SIDE))
        except PictureError:
            self.failed = True
            return None


def _all_hashes(
    photos: Sequence[Photo], boxes: Sequence[Box], store: HashStore, reader: _Reader
) -> dict[str, NDArray[np.uint8]]:
    """The hashes of every readable photo by its sha256, in the order of the photos."""
    shape = (1 + len(boxes), BITS // 8)
    hashes = {photo.sha256: store.hashes(photo.sha256, shape) for photo in photos}
    missing = [photo for photo in photos if hashes[photo.sha256] is None]
    if missing:
        with (
            ThreadPoolExecutor() as pool,
            Progress("near-duplicates, hashing", len(missing), "photos") as progress,
        ):
            for start in range(0, len(missing), 128):
                block = missing[start : start + 128]
                # Decoding runs in threads. Hashing holds Python's lock, so threads would only slow it down.
                new = {
                    photo.sha256: picture_hashes(picture, boxes)
                    for photo, picture in zip(block, pool.map(reader, block), strict=True)
                    if picture is not None
                }
                hashes |= new
                store.add_hashes(new)
                progress.step(len(block))
    return {sha256: value for sha256, value in hashes.items() if value is not None}


def _compare(
    all_photos: Sequence[Photo],
    hashes: Mapping[str, NDArray[np.uint8]],
    boxes: Sequence[Box],
    reader: _Reader,
) -> list[PairRow]:
    """All candidate pairs, with the distance after fitting and the usual distance of their photos."""
    photos = [photo for photo in all_photos if photo.sha256 in hashes]
    if not photos:
        return []
    ordered_hashes = [hashes[photo.sha256] for photo in photos]
    smallest: dict[tuple[int, int], int] = {}
    usual: list[int] = []  # of each photo

    def distance_of(candidate: _Candidate) -> int:
        if len(boxes) == 1:
            return candidate.distance
        picture = reader(photos[candidate.cropped])
        if picture is None:  # the file was removed after hashing
            return candidate.distance
        target = ordered_hashes[candidate.whole][int(candidate.mirrored)]
        return fitted_distance(picture, boxes[candidate.box], target, candidate.distance)

    with Progress("near-duplicates, comparing", len(photos), "photos") as progress:
        for usual_distances, candidates in _candidates(photos, ordered_hashes, boxes):
            for candidate in candidates:
                first, second = sorted((candidate.cropped, candidate.whole))
                smallest[first, second] = min(distance_of(candidate), smallest.get((first, second), BITS))
            usual += usual_distances
            progress.step(len(usual_distances))
    return [
        (photos[one].sha256, photos[two].sha256, distance, min(usual[one], usual[two]))
        for (one, two), distance in smallest.items()
    ]


@dataclass(frozen=True)
class _Candidate:
    """A crop of the photo `cropped` that is near the photo `whole`: indices of both and of the box."""

    cropped: int
    whole: int
    mirrored: bool
    box: int
    distance: int


def _candidates(
    photos: Sequence[Photo], hashes: Sequence[NDArray[np.uint8]], boxes: Sequence[Box]
) -> Iterator[tuple[list[int], list[_Candidate]]]:
    """For each block of photos: the distance of each one to its NEIGHBOURS-th nearest photo, and the nearest
    CANDIDATES_PER_PHOTO of each photo among the photos of other splits or classes.

    Bits become -1 and 1, so that a matrix product counts the equal bits.
    """
    wholes = _signs(np.array([each[:2] for each in hashes]).reshape(-1, BITS // 8))
    names = [NONE_LABEL if photo.label == NONE_LABEL else f"{photo.split}/{photo.label}" for photo in photos]
    groups = np.unique(names, return_inverse=True)[1]
    block = max(1, DISTANCES_PER_BLOCK // max(1, len(boxes) * len(wholes)))
    for start in range(0, len(hashes), block):
        crops = np.array([np.delete(each, 1, axis=0) for each in hashes[start : start + block]])
        products = _signs(crops.reshape(-1, BITS // 8)) @ wholes.T
        products = products.reshape(len(crops), len(boxes), len(wholes))
        best = (BITS - products.max(axis=1)) / 2
        usual = _usual_distances(best, start)
        best[np.repeat(groups[start : start + block, None] == groups, 2, axis=1)] = BITS
        found = []
        for row, distances in enumerate(best):
            near = np.flatnonzero(distances <= MAX_CANDIDATE_DISTANCE)
            for column in near[np.argsort(distances[near], kind="stable")][:CANDIDATES_PER_PHOTO].tolist():
                box = int(products[row, :, column].argmax())
                distance = int(distances[column])
                found.append(_Candidate(start + row, column // 2, column % 2 == 1, box, distance))
        yield usual, found


def _usual_distances(best: NDArray[np.float32], start: int) -> list[int]:
    """The distance of each photo to its NEIGHBOURS-th nearest one, or BITS with fewer photos.

    `best` [n, 2 x photos] are the distances of the photos from `start` on to each photo and its mirror image.
    """
    distances = best.reshape(len(best), -1, 2).min(axis=2)
    if distances.shape[1] <= NEIGHBOURS:
        return [BITS] * len(best)
    rows = np.arange(len(best))
    distances[rows, start + rows] = BITS  # the photo itself
    nearest = np.partition(distances, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]
    return [int(distance) for distance in nearest]


def _signs(hashes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.where(np.unpackbits(hashes, axis=1), np.float32(1), np.float32(-1))


def _is_negative(pair: Pair) -> bool:
    return NONE_LABEL in (pair.photo.label, pair.other.label)


def _without_negatives(dataset: Dataset, pairs: Iterable[Pair], keeping: str = "") -> Dataset:
    """The data set without the negatives in `pairs`, which are printed; the flag `keeping` keeps them."""
    reasons: dict[str, str] = {}
    found = [pair for pair in pairs if _is_negative(pair)]
    for pair in found:
        negative, other = (
            (pair.photo, pair.other) if pair.photo.label == NONE_LABEL else (pair.other, pair.photo)
        )
        text = f"is a near-duplicate of {printable(other.path)}, so it does not show none of the classes"
        reasons.setdefault(negative.path, text)
    if not found:
        return dataset
    keeps = f"; {keeping} keeps it" if keeping else ""
    print(
        f"near-duplicates: {_count(found)} of a photo of a class and one of none of the classes, which is "
        f"left out{keeps}"
    )
    _print_first(found, "left_out.csv")
    fewer = dataset.without(LeftOut(path, reason) for path, reason in reasons.items())
    if not fewer.negatives:
        or_keep = f", or use {keeping}, which keeps them" if keeping else ""
        raise PhotosError(
            "every photo of none of the classes is a near-duplicate of a photo of a class; replace them"
            f"{or_keep}"
        )
    return fewer


def _dropped(pairs: Iterable[Pair]) -> list[LeftOut]:
    """The photo in the earlier split of each pair in different splits, so that test stays as it is."""
    reasons: dict[str, str] = {}
    for pair in pairs:
        if pair.photo.split != pair.other.split:
            reasons.setdefault(
                pair.photo.path, f"is a near-duplicate of {printable(pair.other.path)} in {pair.other.split}"
            )
    return [LeftOut(path, reason) for path, reason in reasons.items()]


def _print_pairs(dataset: Dataset, pairs: Sequence[Pair], action: str) -> None:
    """Print the first SHOWN pairs of each kind, the question to answer, and the next step."""
    across_splits = [pair for pair in pairs if pair.photo.split != pair.other.split]
    if across_splits and action == "drop":
        print(
            f"near-duplicates: {_count(across_splits)} in different splits; the photo in test is kept, or "
            "else the photo in val"
        )
    elif across_splits:
        print(
            f"near-duplicates: {_count(across_splits)} in different splits look alike. Do they show the same "
            "picture? Then the accuracy on val and test looks too high; --near-duplicates drop removes one "
            "photo of each pair"
        )
    added = [pair for pair in across_splits if dataset.is_added(pair.photo)]
    if added:
        print(f"near-duplicates: {_count(added)} of these with a photo of --add in train")
    _print_first(added or across_splits)
    across_classes = [pair for pair in pairs if pair.photo.label != pair.other.label]
    if across_classes:
        print(
            f"near-duplicates: {_count(across_classes)} in different classes look alike. Is one label wrong? "
            "Then move or remove that photo"
        )
    _print_first(across_classes)


def _print_usual(count: int) -> None:
    """Print the number of pairs that do not stand out, and the question to answer."""
    if count:
        print(
            f"near-duplicates: {count:,} other pairs look alike, but their photos look like {NEIGHBOURS} or "
            "more photos each. Are they frames of one video? Then put all frames of a video into the "
            "same folder, train, val or test"
        )


def _print_first(pairs: Sequence[Pair], table: str = "near_duplicates.csv") -> None:
    for pair in pairs[:SHOWN]:
        print(printable(f"near-duplicates: {pair.photo.path} and {pair.other.path}"))
    if len(pairs) > SHOWN:
        print(f"near-duplicates: {len(pairs) - SHOWN:,} more; {table} lists all")


def _count(pairs: Sequence[Pair]) -> str:
    return f"{len(pairs):,} pair{'s' if len(pairs) > 1 else ''}"
