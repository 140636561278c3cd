"""The cache of near-duplicate detection: one SQLite file with picture hashes and the pairs of data sets."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import UserError
from train.cache import CacheError

# The sha256 of both photos, the distance of their hashes in bits, and `Pair.usual_distance`.
PairRow = tuple[str, str, int, int]
PAIRS_TABLE = "pairs2"  # increase the number if the pairs of a data set change


class HashStore:
    """Hashes by the sha256 of a photo, and pairs by the sha256 of a data set, in `folder`/hashes.sqlite.

    All methods raise UserError if the file cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hashes.sqlite"
        with self._user_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()  # the cache evicts least recently used files
            self.database = sqlite3.connect(self.file)
            with self.database:
                self.database.execute("CREATE TABLE IF NOT EXISTS hashes (photo TEXT PRIMARY KEY, bits BLOB)")
                self.database.execute(
                    f"CREATE TABLE IF NOT EXISTS {PAIRS_TABLE} (photos TEXT PRIMARY KEY, found TEXT)"
                )

    def close(self) -> None:
        self.database.close()

    def hashes(self, photo: str, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
        """The stored hashes of a photo, or None."""
        with self._user_errors():
            row = self.database.execute("SELECT bits FROM hashes WHERE photo = ?", (photo,)).fetchone()
        if row is None or len(row[0]) != shape[0] * shape[1]:
            return None
        return np.frombuffer(row[0], np.uint8).reshape(shape)

    def add_hashes(self, hashes: Mapping[str, NDArray[np.uint8]]) -> None:
        rows = [(photo, bits.tobytes()) for photo, bits in hashes.items()]
        with self._user_errors(), self.database:
            self.database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", rows)

    def pairs(self, dataset: str) -> list[PairRow] | None:
        """The stored pairs of a data set, or None."""
        with self._user_errors():
            query = f"SELECT found FROM {PAIRS_TABLE} WHERE photos = ?"
            row = self.database.execute(query, (dataset,)).fetchone()
        if row is None:
            return None
        return [(one, two, distance, usual) for one, two, distance, usual in json.loads(row[0])]

    def add_pairs(self, dataset: str, pairs: list[PairRow]) -> None:
        with self._user_errors(), self.database:
            query = f"INSERT OR REPLACE INTO {PAIRS_TABLE} VALUES (?, ?)"
            self.database.execute(query, (dataset, json.dumps(pairs)))

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(self.file, error) from None
        except sqlite3.Error as error:
            raise UserError(
                f"cache {self.file}: {error}; delete the file, free disk space, or give another --cache"
            ) from None
