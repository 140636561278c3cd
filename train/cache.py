"""The user's cache folder: everything in it can be made again.

python -m train.cache [--clear]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from runtime.common.errors import UserError
from runtime.common.user_cache import cache_home

CACHE_LIMIT = 20_000_000_000  # bytes: 19,000 photos with the five views of fine-tuning block5

_HEX = "[0-9a-f]"
_FEATURE = f"{16 * _HEX}-picture*/{2 * _HEX}/%s{64 * _HEX}*.npy%s"
# What train/features.py and train/near_duplicates.py put into a cache, half-written files of killed runs
# among it. --cache may name a folder that holds anything else.
OWN = (_FEATURE % ("", ""), _FEATURE % (".", ".*"), "hashes*-picture*/hashes.sqlite")


class CacheError(UserError):
    """A cache that cannot be written or read."""

    def __init__(self, place: Path, error: OSError) -> None:
        # Of a write that came to nothing numpy does not pass on the system's reason.
        reason = error.strerror or f"is the disk full? {error}"
        super().__init__(
            f"cache {place}: {reason}; make room, or give another folder by --cache or XDG_CACHE_HOME"
        )


def cache_folder(name: str) -> Path:
    """`name` under the cache of this project, made if need be; XDG_CACHE_HOME moves it. Raises CacheError."""
    folder = cache_home() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(folder, error) from None
    return folder


def make_room(cache: Path, used: Collection[Path], needed: int, limit: int) -> None:
    """Remove the features under `cache` that were used longest ago, until `needed` bytes more fit in `limit`.

    `used` are the files that this run works on: they stay, and count as used now. Raises UserError when they
    alone are over the limit, or the disk is full.
    """
    own = 0
    for file in used:
        with suppress(OSError):  # not there yet
            own += file.stat().st_size
            os.utime(file)
    if own + needed > limit:
        raise UserError(
            f"cache {cache}: this run's features are {_size(own + needed)} and the bound is "
            f"{_size(limit)}; give a higher --cache-limit, or fewer --views or --fine-tune-views"
        )
    if not needed:
        return
    others = []
    for file in (file for pattern in OWN for file in cache.glob(pattern)):
        with suppress(OSError):  # removed meanwhile by another run
            if file.is_file() and file not in used:
                others.append((file.stat().st_mtime, file.stat().st_size, file))
    total = own + sum(size for _, size, _ in others)
    removed = 0
    for _, size, file in sorted(others):
        if total + needed <= limit:
            break
        with suppress(OSError):
            file.unlink()
            total, removed = total - size, removed + size
    if removed:
        print(f"cache: {_size(removed)} used longest ago removed, to stay in {_size(limit)}")
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"cache {cache}: {_size(needed)} of features are needed and {_size(free)} are free; "
            "make room, or give another folder by --cache"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Tells what the cache holds, and removes it with --clear. Returns the exit code: 0, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m train.cache", description="What the cache holds.")
    parser.add_argument("--clear", action="store_true", help="remove it all; it is made again when needed")
    arguments = parser.parse_args(argv)
    home, total = cache_home(), 0
    parts = [part for part in home.glob("*") if part.name != "features"]
    for folder in sorted([*parts, *home.glob("features/*")]):
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        total += sum(sizes)
        print(f"{sum(sizes) / 1e6:10,.1f} MB  {len(sizes):7,} files  {folder.relative_to(home)}")
    print(f"{total / 1e6:10,.1f} MB  in {home}")
    if arguments.clear:
        try:
            if home.exists():
                shutil.rmtree(home)
        except OSError as error:
            print(f"error: {CacheError(home, error)}", file=sys.stderr)
            return 2
        print("cleared")
    return 0


if __name__ == "__main__":
    sys.exit(main())
