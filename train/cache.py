"""The user's cache folder: everything in it can be made again.

python -m train.cache [--clear]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError


class CacheError(UserError):
    """A cache that cannot be written or read."""

    def __init__(self, place: Path, error: OSError) -> None:
        super().__init__(
            f"cache {place}: {error.strerror or error}; make room, or give another folder by --cache or "
            "XDG_CACHE_HOME"
        )


def cache_folder(name: str) -> Path:
    """`name` under the cache of this project, made if need be; XDG_CACHE_HOME moves it. Raises CacheError."""
    folder = _home() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(folder, error) from None
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Tells what the cache holds, and removes it with --clear. Returns the exit code: 0, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m train.cache", description="What the cache holds.")
    parser.add_argument("--clear", action="store_true", help="remove it all; it is made again when needed")
    arguments = parser.parse_args(argv)
    total = 0
    parts = [part for part in _home().glob("*") if part.name != "features"]
    for folder in sorted([*parts, *_home().glob("features/*")]):
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        total += sum(sizes)
        print(f"{sum(sizes) / 1e6:10,.1f} MB  {len(sizes):7,} files  {folder.relative_to(_home())}")
    print(f"{total / 1e6:10,.1f} MB  in {_home()}")
    if arguments.clear:
        try:
            if _home().exists():
                shutil.rmtree(_home())
        except OSError as error:
            print(f"error: {CacheError(_home(), error)}", file=sys.stderr)
            return 2
        print("cleared")
    return 0


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgg-edge"


if __name__ == "__main__":
    sys.exit(main())
