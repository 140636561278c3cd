"""Find photos that are the same picture: encoded again, resized, cropped, mirrored, in other colours.

A model that is tested on a crop of what it was trained on looks better than it is. Each photo is hashed
whole, mirrored, and in a grid of crops, by ImageHash's pHash and its dHash in both directions (192 bits). A
pair is alike when the whole of one is near a crop of the other, whose edges are then moved to where it fits
best. What was found is kept by the photos' bytes, so that asking again costs nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from runtime.common.errors import PictureError, UserError
from runtime.common.text import printable
from runtime.preprocess.picture import PICTURE_VERSION, read_picture
from train.cache import CacheError
from train.data.dataset import (
    SPLITS,
    ChangedError,
    Dataset,
    LeftOut,
    Photo,
    PhotosError,
    read_hashed,
    write_table,
)
from train.progress import Progress

HASH_VERSION = 1  # bumped when a photo's hashes or what counts as alike change: both are kept by it
SIDE = 96  # pixels a side that crops are hashed from
BITS = 192
# Measured by benchmarks/near_duplicates.py: of planted copies nearly all lie below, of different photos none.
ALIKE = 20  # bits that differ, at most, once the crop is fitted
CANDIDATE = 40  # bits that differ, at most, in the grid of crops: 5 photos in 100 have one such by chance
# Comparing grows with the square of the photos: reckoned from 4,000 with crops and 20,000 without, on 2 busy
# cores 20,000 would take 5 minutes, and 200,000 without crops a quarter of an hour.
MOST_CROPPED = 20_000
MOST = 200_000
NEAREST = 5  # candidates of a photo that are looked at: frames of a film are all alike
BLOCK = 1 << 25  # distances held at a time: 128 MB

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the sides
Hash = NDArray[np.uint8]  # [BITS / 8]


@dataclass(frozen=True)
class Pair:
    """Two photos that are one picture, and how many of BITS bits differ between their hashes."""

    photo: Photo
    other: Photo
    distance: int


def check_near_duplicates(dataset: Dataset, cache: Path, what: str) -> tuple[Dataset, list[Pair]]:
    """Find and tell them; `what` is a choice of --near-duplicates.

    With "drop" the data set comes back without those in a split before the other's; with "report" as it was.
    Raises UserError for a cache that cannot be used, or when a class would have no photo left to train on.
    """
    if what == "ignore":
        return dataset, []
    pairs = near_duplicates(dataset, cache)
    _tell(pairs, what)
    if what == "report":
        return dataset, pairs
    try:
        return dataset.without(_dropped(pairs)), pairs
    except PhotosError as error:
        raise PhotosError(f"{error}, or --near-duplicates report, which keeps what drop leaves out") from None


def near_duplicates(dataset: Dataset, cache: Path, alike: int = ALIKE) -> list[Pair]:
    """The pairs that lie in different splits or carry different labels, by path; `cache` keeps the hashes.

    The photo of a pair is the one in the earlier split of train, val, test. Photos that cannot be read, or
    are no longer those that were hashed, are passed over: features leave them out. Over MOST_CROPPED photos
    no crops are looked for, over MOST nothing is, which a line tells.
    Raises UserError for a cache that cannot be used.
    """
    if len(dataset.photos) > MOST:
        print(f"near-duplicates: not looked for, there are over {MOST:,} photos")
        return []
    boxes = GRID if len(dataset.photos) <= MOST_CROPPED else GRID[:1]
    if len(boxes) == 1:
        print(f"near-duplicates: crops are not looked for, there are over {MOST_CROPPED:,} photos")
    with closing(_Kept(cache / f"hashes{HASH_VERSION}-picture{PICTURE_VERSION}-{len(boxes)}")) as kept:
        found = kept.pairs(dataset.sha256)
        if found is None:
            look = _Look(dataset.root)
            found = _compare(dataset, _hashes(dataset, boxes, kept, look), boxes, look)
            if not look.changed:  # or what is lacking would be so for ever
                kept.keep_pairs(dataset.sha256, found)
    of = {photo.sha256: photo for photo in dataset.photos}
    pairs = []
    for *names, distance in found:
        photo, other = sorted((of[name] for name in names), key=lambda p: (SPLITS.index(p.split), p.path))
        if distance <= alike:
            pairs.append(Pair(photo, other, distance))
    return sorted(pairs, key=lambda pair: (pair.photo.path, pair.other.path))


def write_pairs(pairs: Iterable[Pair], folder: Path) -> None:
    """Write near_duplicates.csv: path, split and label of both, and the distance in bits."""
    columns = ("path", "split", "label", "other_path", "other_split", "other_label", "distance")
    rows = []
    for pair in pairs:
        one, two = pair.photo, pair.other
        rows.append((one.path, one.split, one.label, two.path, two.split, two.label, pair.distance))
    write_table(folder / "near_duplicates.csv", columns, rows)


def _grid() -> list[Box]:
    """The whole first; every crop by tenths that leaves 0.8 or more of each side; the middle and the corners
    of 0.7 and 0.6 of both.
    """
    cuts = [(low / 10, high / 10) for low in range(3) for high in range(3 - low)]
    boxes = [(left, top, 1 - right, 1 - bottom) for (left, right), (top, bottom) in product(cuts, cuts)]
    for cut in (0.3, 0.4):
        at = [*product((0.0, cut), repeat=2), (cut / 2, cut / 2)]
        boxes += [(left, top, left + 1 - cut, top + 1 - cut) for left, top in at]
    return boxes


GRID = _grid()


def hashes_of(picture: NDArray[np.uint8], boxes: Sequence[Box] = GRID) -> Hash:
    """Hashes [1 + len(boxes), BITS / 8] of a picture [SIDE, SIDE, 3]: whole, mirrored, each further box."""
    gray = Image.fromarray(picture).convert("L")
    return np.stack([_hash(gray), _hash(ImageOps.mirror(gray)), *(_hash(gray, box) for box in boxes[1:])])


def _hash(gray: Image.Image, box: Box = (0, 0, 1, 1)) -> Hash:
    # Resized once, to what pHash asks for; dHash takes its 9 x 8 from there.
    left, top, right, bottom = (SIDE * share for share in box)
    look = gray.resize((32, 32), Image.Resampling.LANCZOS, (left, top, right, bottom))
    found = (method(look).hash for method in (imagehash.phash, imagehash.dhash, imagehash.dhash_vertical))
    return np.packbits(np.concatenate([bits.ravel() for bits in found]))


@dataclass
class _Look:
    """Photos as pictures [SIDE, SIDE, 3]; `changed` once there was one that is not what was hashed."""

    root: Path
    changed: bool = False

    def __call__(self, photo: Photo) -> NDArray[np.uint8] | None:
        """None of a photo that cannot be read."""
        try:
            return read_picture(read_hashed(self.root, photo), (SIDE, SIDE))
        except PictureError as error:
            self.changed |= isinstance(error, ChangedError)
            return None


def _hashes(dataset: Dataset, boxes: Sequence[Box], kept: _Kept, look: _Look) -> dict[str, NDArray[np.uint8]]:
    """The hashes of every photo that can be read, by its sha256, in the order of the data set."""
    shape = (1 + len(boxes), BITS // 8)
    found = {photo.sha256: kept.hashes(photo.sha256, shape) for photo in dataset.photos}
    missing = [photo for photo in dataset.photos if found[photo.sha256] is None]
    if missing:
        with (
            ThreadPoolExecutor() as pool,
            Progress("near-duplicates, hashing", len(missing), "photos") as progress,
        ):
            for start in range(0, len(missing), 128):
                part = missing[start : start + 128]
                # Hashes are small work for Python: several threads at it are slower than one.
                new = {
                    photo.sha256: hashes_of(picture, boxes)
                    for photo, picture in zip(part, pool.map(look, part), strict=True)
                    if picture is not None
                }
                found |= new
                kept.keep_hashes(new)
                progress.step(len(part))
    return {name: hashes for name, hashes in found.items() if hashes is not None}


def _compare(
    dataset: Dataset, hashes: Mapping[str, NDArray[np.uint8]], boxes: Sequence[Box], look: _Look
) -> list[tuple[str, str, int]]:
    """The sha256 of both photos and the distance of every pair that matters and may be alike."""
    photos = [photo for photo in dataset.photos if photo.sha256 in hashes]
    stack = [hashes[photo.sha256] for photo in photos]
    nearest: dict[tuple[str, str], int] = {}

    def fitted(candidate: _Candidate) -> int:
        wanted = stack[candidate.whole][int(candidate.mirrored)]
        picture = look(photos[candidate.cropped])
        if picture is None:  # gone since it was hashed
            return candidate.distance
        return _fitted(picture, boxes[candidate.box], wanted, candidate.distance)

    with Progress("near-duplicates, comparing", len(photos), "photos") as progress:
        for rows, candidates in _candidates(photos, stack, boxes):
            distances = map(fitted, candidates) if len(boxes) > 1 else (c.distance for c in candidates)
            for candidate, distance in zip(candidates, distances, strict=True):
                first, second = sorted((candidate.cropped, candidate.whole))
                pair = photos[first].sha256, photos[second].sha256
                nearest[pair] = min(distance, nearest.get(pair, BITS))
            progress.step(rows)
    return [(one, two, distance) for (one, two), distance in nearest.items()]


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
) -> Iterator[tuple[int, list[_Candidate]]]:
    """For each block of photos their number and the NEAREST candidates of each among those of another split
    or class.

    Bits as -1 and 1, so that a matrix product counts them.
    """
    wholes = _signs(np.array([each[:2] for each in hashes]).reshape(-1, BITS // 8))
    groups = np.unique([f"{photo.split}/{photo.label}" for photo in photos], return_inverse=True)[1]
    step = max(1, BLOCK // max(1, len(boxes) * len(wholes)))
    for start in range(0, len(hashes), step):
        crops = np.array([np.delete(each, 1, axis=0) for each in hashes[start : start + step]])
        agree = (_signs(crops.reshape(-1, BITS // 8)) @ wholes.T).reshape(len(crops), len(boxes), len(wholes))
        best = (BITS - agree.max(axis=1)) / 2
        best[np.repeat(groups[start : start + step, None] == groups, 2, axis=1)] = BITS
        found = []
        for row, distances in enumerate(best):
            near = np.flatnonzero(distances <= CANDIDATE)
            for at in near[np.argsort(distances[near], kind="stable")][:NEAREST].tolist():
                box = int(agree[row, :, at].argmax())
                found.append(_Candidate(start + row, at // 2, at % 2 == 1, box, int(distances[at])))
        yield len(crops), found


def _signs(hashes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.where(np.unpackbits(hashes, axis=1), np.float32(1), np.float32(-1))


def _fitted(picture: NDArray[np.uint8], box: Box, wanted: Hash, distance: int) -> int:
    """The least distance found by moving the edges of the photo's crop, in ever smaller steps."""
    gray = Image.fromarray(picture).convert("L")
    for step in (0.04, 0.02, 0.01):
        for edge, move in product(range(4), (-step, step)):
            edges = list(box)
            edges[edge] = min(max(edges[edge] + move, 0.0), 1.0)
            tried: Box = (edges[0], edges[1], edges[2], edges[3])
            differing = int(np.unpackbits(_hash(gray, tried) ^ wanted).sum())
            if differing < distance:
                box, distance = tried, differing
    return distance


class _Kept:
    """Hashes by a photo's bytes, and pairs by a data set's, in one SQLite file under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hashes.sqlite"
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()  # used now: what was used longest ago gives way to features
            self.database = sqlite3.connect(self.file)
            with self.database:
                self.database.execute("CREATE TABLE IF NOT EXISTS hashes (photo TEXT PRIMARY KEY, bits BLOB)")
                self.database.execute(
                    "CREATE TABLE IF NOT EXISTS pairs (photos TEXT PRIMARY KEY, found TEXT)"
                )

    def close(self) -> None:
        self.database.close()

    def hashes(self, photo: str, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
        with self._told():
            row = self.database.execute("SELECT bits FROM hashes WHERE photo = ?", (photo,)).fetchone()
        if row is None or len(row[0]) != shape[0] * shape[1]:
            return None
        return np.frombuffer(row[0], np.uint8).reshape(shape)

    def keep_hashes(self, hashes: Mapping[str, NDArray[np.uint8]]) -> None:
        rows = [(photo, bits.tobytes()) for photo, bits in hashes.items()]
        with self._told(), self.database:
            self.database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", rows)

    def pairs(self, photos: str) -> list[tuple[str, str, int]] | None:
        with self._told():
            row = self.database.execute("SELECT found FROM pairs WHERE photos = ?", (photos,)).fetchone()
        return None if row is None else [(one, two, distance) for one, two, distance in json.loads(row[0])]

    def keep_pairs(self, photos: str, found: list[tuple[str, str, int]]) -> None:
        with self._told(), self.database:
            self.database.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?)", (photos, json.dumps(found)))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(self.file, error) from None
        except sqlite3.Error as error:
            raise UserError(
                f"cache {self.file}: {error}; remove it, make room, or give another --cache"
            ) from None


def _dropped(pairs: Iterable[Pair]) -> list[LeftOut]:
    """Of each pair in different splits the earlier of train, val and test, so that test stays as it is."""
    reasons: dict[str, str] = {}
    for pair in pairs:
        if pair.photo.split != pair.other.split:
            reasons.setdefault(
                pair.photo.path, f"a near-duplicate of {printable(pair.other.path)} in {pair.other.split}"
            )
    return [LeftOut(path, reason) for path, reason in reasons.items()]


def _tell(pairs: Sequence[Pair], what: str) -> None:
    """The first three of each kind, what they mean, and what to do."""
    across = [pair for pair in pairs if pair.photo.split != pair.other.split]
    if across and what == "drop":
        print(f"near-duplicates: {_count(across)} in different splits; the one in test, or else val, is kept")
    elif across:
        print(
            f"near-duplicates: {_count(across)} in different splits, which makes figures of val and test too "
            "good; --near-duplicates drop leaves out one of each"
        )
    _tell_first(across)
    named = [pair for pair in pairs if pair.photo.label != pair.other.label]
    if named:
        print(
            f"near-duplicates: {_count(named)} in different classes, so that a label is wrong; "
            "move or remove the photo"
        )
    _tell_first(named)


def _tell_first(pairs: Sequence[Pair]) -> None:
    for pair in pairs[:3]:
        print(printable(f"near-duplicates: {pair.photo.path} and {pair.other.path}"))
    if len(pairs) > 3:
        print(f"near-duplicates: {len(pairs) - 3:,} more; all are listed in near_duplicates.csv")


def _count(pairs: Sequence[Pair]) -> str:
    return f"{len(pairs):,} pair{'s' if len(pairs) > 1 else ''}"
