"""Perceptual hashes of a picture and of its crops, which are nearly the same for near-duplicates.

Each hash joins ImageHash's pHash and its dHash in both directions (BITS bits in all).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

HASH_VERSION = 1  # increase it if the hashes of a photo change: they are cached by it
SIDE = 96  # pixels a side of the pictures that crops are hashed from
BITS = 192

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the sides
Hash = NDArray[np.uint8]  # [BITS / 8]


def crop_grid() -> list[Box]:
    """The whole picture first; then every crop in steps of a tenth that keeps 0.8 or more of each side; then
    the centre and the four corners at 0.7 and at 0.6 of both sides.
    """
    cuts = [(low / 10, high / 10) for low in range(3) for high in range(3 - low)]
    boxes = [(left, top, 1 - right, 1 - bottom) for (left, right), (top, bottom) in product(cuts, cuts)]
    for cut in (0.3, 0.4):
        corners = [*product((0.0, cut), repeat=2), (cut / 2, cut / 2)]
        boxes += [(left, top, left + 1 - cut, top + 1 - cut) for left, top in corners]
    return boxes


GRID = crop_grid()


def picture_hashes(picture: NDArray[np.uint8], boxes: Sequence[Box] = GRID) -> NDArray[np.uint8]:
    """Hashes [1 + len(boxes), BITS / 8] of a picture uint8 [SIDE, SIDE, 3]: the whole picture, its mirror
    image, then each box after the first, which is the whole picture.
    """
    gray = Image.fromarray(picture).convert("L")
    crops = (_hash(gray, box) for box in boxes[1:])
    return np.stack([_hash(gray), _hash(ImageOps.mirror(gray)), *crops])


def fitted_distance(picture: NDArray[np.uint8], box: Box, target: Hash, distance: int) -> int:
    """The smallest distance to the hash `target` when the edges of the picture's crop `box` move in ever
    smaller steps. `distance` is the distance of `box` itself.
    """
    gray = Image.fromarray(picture).convert("L")
    for step in (0.04, 0.02, 0.01):
        for edge, move in product(range(4), (-step, step)):
            edges = list(box)
            edges[edge] = min(max(edges[edge] + move, 0.0), 1.0)
            moved: Box = (edges[0], edges[1], edges[2], edges[3])
            differing = int(np.unpackbits(_hash(gray, moved) ^ target).sum())
            if differing < distance:
                box, distance = moved, differing
    return distance


def _hash(gray: Image.Image, box: Box = (0, 0, 1, 1)) -> Hash:
    # Resized once, to the size that pHash needs; dHash reduces it to 9 x 8.
    left, top, right, bottom = (SIDE * share for share in box)
    small = gray.resize((32, 32), Image.Resampling.LANCZOS, (left, top, right, bottom))
    hashes = (method(small).hash for method in (imagehash.phash, imagehash.dhash, imagehash.dhash_vertical))
    return np.packbits(np.concatenate([bits.ravel() for bits in hashes]))
