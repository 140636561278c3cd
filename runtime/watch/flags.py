"""The flags of `python -m runtime.classify --watch`."""

import argparse

from runtime.common.cli import path_name

NEEDS_WATCH = ("out",)  # flags that do nothing without --watch


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --watch and --out."""
    watch = parser.add_argument_group("watch")
    watch.add_argument(
        "--watch",
        metavar="DIR",
        type=path_name,
        help="classify the photos in a folder, and new photos as they arrive",
    )
    watch.add_argument(
        "--out",
        metavar="FILE",
        type=path_name,
        help="append the results to this .csv or .db (SQLite) file. For an unknown photo, `known` is false "
        "and `label` is the nearest class. After a restart, photos in the file are skipped",
    )
