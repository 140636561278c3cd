"""The flags of `python -m runtime.classify --watch`."""

import argparse

NEEDS_WATCH = ("out",)


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    watch = parser.add_argument_group("watch")
    watch.add_argument(
        "--watch", metavar="DIR", help="classify the photos in a folder, and new photos as they arrive"
    )
    watch.add_argument("--out", metavar="FILE", help="append the answers to this .csv or .db (SQLite) file")
