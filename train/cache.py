"""Show the size of the cache in the user's cache folder, or clear it. The cache holds only data that later
commands can create again.

python -m train.cache [--clear]
"""

from __future__ import annotations

import argparse
import atexit
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runtime.common.cli import ArgumentParser, path_name, run_cli
from runtime.common.errors import UserError
from runtime.common.file_lock import exclusive_lock
from runtime.common.user_cache import cache_home

CACHE_LIMIT = 20_000_000_000  # bytes: 19,000 photos with the 5 views of --fine-tune block5

_HEX = "[0-9a-f]"
_FEATURE = f"{16 * _HEX}-picture*/{2 * _HEX}/%s{64 * _HEX}*.npy%s"
# The files of train/features and train/data/hash_store.py, with the partial files of killed runs. Other files
# are never removed, because --cache may name any folder.
CACHE_FILES = (_FEATURE % ("", ""), _FEATURE % (".", ".*"), "hashes*-picture*/hashes.sqlite")

IN_USE = ".in-use-"  # how the name of a lock file begins, which a running command holds in the cache


class CacheError(UserError):
    """A cache that cannot be read or written."""

    def __init__(self, place: Path, error: OSError) -> None:
        # numpy raises an OSError without the system's reason if a write fails.
        reason = error.strerror or f"is the disk full? {error}"
        super().__init__(
            f"cache {place}: {reason}; free disk space, or set another folder with --cache or XDG_CACHE_HOME"
        )


def cache_folder(name: str) -> Path:
    """The folder `name` in the cache, created if missing. XDG_CACHE_HOME moves it. Raises UserError."""
    folder = _home() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(folder, error) from None
    return folder


def features_folder(cache: str | None) -> Path:
    """The folder of stored features that --cache names: the user's cache for None, and for "none" a folder
    that is removed when Python ends. Raises UserError.
    """
    if cache is None:
        return cache_folder("features")
    if cache == "none":
        folder = tempfile.mkdtemp(prefix="vgg-edge-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return Path(cache)


def add_cache_flags(group: argparse._ArgumentGroup) -> None:
    """Add --cache and --cache-limit."""
    group.add_argument(
        "--cache",
        type=lambda text: str(path_name(text)),
        metavar="DIR|none",
        help="where features are stored (default: ~/.cache/vgg-edge); see `python -m train.cache`",
    )
    group.add_argument(
        "--cache-limit",
        type=_gigabytes,
        default=CACHE_LIMIT,
        metavar="GB",
        help=f"cache limit; least recently used features are evicted (default: {CACHE_LIMIT / 1e9:.0f})",
    )


@contextmanager
def features_in_use(cache: str | None) -> Iterator[None]:
    """Keeps other commands from evicting features that this command uses. --cache names the folder of them.

    Raises UserError.
    """
    with ExitStack() as stack:
        if cache != "none":
            folder = features_folder(cache)
            with suppress(OSError):  # write_feature reports a folder that cannot be written
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(folder / f"{IN_USE}{secrets.token_hex(8)}"))
        yield


def make_room(cache: Path, used: Collection[Path], needed: int, limit: int) -> None:
    """Evict the least recently used files under `cache` until `needed` more bytes fit into `limit`.

    `used` are the files of this run: they stay, and their time of use becomes now. Raises UserError as
    `files_to_evict`, and then evicts nothing.
    """
    for file in used:
        with suppress(OSError):  # not computed yet
            os.utime(file)
    removed = 0
    for size, file in files_to_evict(cache, used, needed, limit):
        with suppress(OSError):
            file.unlink()
            removed += size
    if removed:
        print(f"cache: evicted {_size(removed)} of least recently used files to stay within {_size(limit)}")


def files_to_evict(
    cache: Path, used: Collection[Path], needed: int, limit: int
) -> Sequence[tuple[int, Path]]:
    """The sizes and paths of the files under `cache` that make room for `needed` bytes within `limit`.

    Raises UserError if the files in use exceed the limit, which are `used` by this run and the files of other
    commands that run now; or if too little of the disk is free.
    """
    used_bytes = sum(_size_of(file) for file in used)
    if used_bytes + needed > limit:
        raise UserError(
            f"cache {cache}: this run's features need {_size(used_bytes + needed)} and the limit is "
            f"{_size(limit)}; give a higher --cache-limit, or fewer --views or --fine-tune-views"
        )
    if not needed:
        return []
    others = []
    for file in (file for pattern in CACHE_FILES for file in cache.glob(pattern)):
        with suppress(OSError):  # another run removed it
            if file.is_file() and file not in used:
                others.append((file.stat().st_mtime, file.stat().st_size, file))
    excess = used_bytes + sum(size for _, size, _ in others) + needed - limit
    first_use = _first_use(cache)
    evicted: list[tuple[int, Path]] = []
    for last_use, size, file in sorted(others):
        if excess <= 0:
            break
        if last_use >= first_use:
            raise UserError(
                f"cache {cache}: this run's {_size(needed)} do not fit into the limit of {_size(limit)} "
                "beside the hashes of its photos and files that other commands use now; give a higher "
                "--cache-limit, or wait for these commands"
            )
        evicted.append((size, file))
        excess -= size
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free + sum(size for size, _ in evicted)
    if free < needed:
        raise UserError(
            f"cache {cache}: the features need {_size(needed)} and {_size(free)} are free on the disk; "
            "free disk space, or set another folder with --cache"
        )
    return evicted


def _first_use(cache: Path) -> float:
    """The start of the oldest command that uses the cache now, or infinity. All files that these commands
    use were used after it.
    """
    starts = [float("inf")]
    for lock in cache.glob(f"{IN_USE}*"):
        with suppress(OSError):  # its command ended
            try:
                with exclusive_lock(lock):
                    pass  # a killed command left it
            except BlockingIOError:
                starts.append(lock.stat().st_mtime)
    return min(starts)


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # not computed yet
        return 0


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _gigabytes(text: str) -> int:
    """Bytes for a text in GB."""
    try:
        size = round(float(text) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a size in GB, such as 20")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Print the size of each part of the cache; clear it with --clear. Returns 0, or 2 for an error."""
    parser = ArgumentParser(
        prog="python -m train.cache", description="Show the size of the cache, or clear it."
    )
    parser.add_argument(
        "--clear", action="store_true", help="delete the cache; later commands create it again if needed"
    )
    arguments = parser.parse_args(argv)
    return run_cli(lambda: _show_or_clear(arguments.clear))


def _show_or_clear(clear: bool) -> int:
    home = _home()
    total = _print_sizes(home)
    if not clear:
        print("next: python -m train.cache --clear deletes the cache" if total else "The cache is empty.")
        return 0
    if _first_use(home / "features") != float("inf"):
        raise UserError(f"cache {home}: a command uses it now; wait for it, then clear the cache")
    try:
        for path in home.iterdir() if home.exists() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if home.exists() and not home.is_symlink():  # a link leads to a folder on another disk, which stays
            home.rmdir()
    except OSError as error:
        raise CacheError(home, error) from None
    print(f"deleted {_size(total)}")
    return 0


def _home() -> Path:
    """The cache of this user. Raises UserError for a user without a home folder."""
    try:
        return cache_home()
    except RuntimeError:
        raise UserError(
            "the cache: this user has no home folder; set XDG_CACHE_HOME, or give --cache"
        ) from None


def _print_sizes(home: Path) -> int:
    """Print the size of each part of the cache; returns their sum in bytes."""
    total = 0
    parts = [part for part in home.glob("*") if part.name != "features"]
    for folder in sorted([*parts, *home.glob("features/*")]):
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        total += sum(sizes)
        print(f"{sum(sizes) / 1e6:10,.1f} MB  {len(sizes):7,} files  {folder.relative_to(home)}")
    print(f"{total / 1e6:10,.1f} MB  in total in {home}")
    return total


if __name__ == "__main__":
    sys.exit(main())
