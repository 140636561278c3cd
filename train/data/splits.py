"""Divide photos into train, val and test: seeded, stratified by class, and by the hash of each photo."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from train.data.dataset import Photo


def split_train(photos: Iterable[Photo], shares: Mapping[str, float], seed: int) -> list[Photo]:
    """All photos, with shares of the training photos moved to the splits "val" and "test".

    Each class gives round(share x number of photos) to a split: at least one if the share is over 0, and at
    least one photo stays in train. The seed and the photo's bytes give its place in the order of its class.
    Test takes the first photos of this order and val the last, so that adding photos moves few others.
    """
    result = [photo for photo in photos if photo.split != "train"]
    for group in _by_class(photo for photo in photos if photo.split == "train").values():
        ordered = sorted(group, key=lambda photo: _order_key(photo, str(seed)))
        test = _count(len(ordered), shares.get("test", 0), len(ordered) - 1)
        val = _count(len(ordered), shares.get("val", 0), len(ordered) - 1 - test)
        split_names = ["test"] * test + ["train"] * (len(ordered) - test - val) + ["val"] * val
        result += [replace(photo, split=name) for photo, name in zip(ordered, split_names, strict=True)]
    return result


def limit_per_class(photos: Iterable[Photo], limit: int, seed: int) -> list[Photo]:
    """At most `limit` photos of each class in each split, chosen by the seed and the photos' bytes."""
    selected: list[Photo] = []
    for group in _by_class(photos).values():
        # The text differs from the text in split_train. With the same one, test would get the same photos
        # for every limit.
        selected += sorted(group, key=lambda photo: _order_key(photo, f"limit {seed}"))[:limit]
    return selected


def _count(photos: int, share: float, available: int) -> int:
    return min(max(round(share * photos), 1 if share else 0), available)


def _by_class(photos: Iterable[Photo]) -> dict[tuple[str, str], list[Photo]]:
    groups: dict[tuple[str, str], list[Photo]] = defaultdict(list)
    for photo in photos:
        groups[photo.split, photo.label].append(photo)
    return groups


def _order_key(photo: Photo, seed: str) -> bytes:
    return hashlib.sha256(f"{seed}:{photo.sha256}".encode()).digest()
