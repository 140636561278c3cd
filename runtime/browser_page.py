"""One HTML file that classifies in the browser: `python -m runtime.browser_page --out flowers.html`.

The file holds the model and ONNX Runtime Web. It needs no server and no network, and its pictures stay on
the device.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from runtime.browser.engine_package import NAME, load_engine_package
from runtime.browser.page import make_page
from runtime.common.atomic import atomic_write
from runtime.common.cli import ArgumentParser, path_name, run_cli
from runtime.common.errors import UserError
from runtime.common.text import printable
from runtime.model_file.loader import KEY_VARIABLE, open_model
from runtime.model_file.releases import check_release

FORMATS = ("onnx",)  # that the engine reads


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 success, 2 usage error, no model, or no engine."""
    return run_cli(lambda: _run(_parse_arguments(argv)))


def _run(arguments: argparse.Namespace) -> int:
    model = open_model(arguments.model, FORMATS, key=arguments.key)
    if not arguments.allow_rollback:
        check_release(model)
    page = make_page(model, load_engine_package(arguments.engine_package)).encode()
    path = arguments.out or Path(f"{model.contract.name}.html")
    try:
        with atomic_write(path) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another --out") from None
    print(printable(f"{model.path} ({len(model.data) / 1e6:.1f} MB) → {path} ({len(page) / 1e6:.1f} MB)"))
    print("open the file in a browser, or put it on any web server; the camera of a phone needs https")
    return 0


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.browser_page",
        description="Write one HTML file with the page, an ONNX model and its engine. It classifies photos "
        "and the camera's pictures in the browser, without a server and without a network.",
        epilog="Exit codes: 0 success, 2 usage error, no model, or no engine.",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="folder with a model.json, or an .onnx file (default: the newest model under ./models that was "
        "trained on photos, else the released model)",
    )
    parser.add_argument(
        "--key",
        metavar="PUBLIC.pem",
        help=f"use only a model that this key signed (default: the key file that {KEY_VARIABLE} names)",
    )
    parser.add_argument(
        "--allow-rollback",
        action="store_true",
        help="accept a signed model that is older than the newest that ran here",
    )
    parser.add_argument(
        "--out",
        type=path_name,
        metavar="FILE.html",
        help="the file to write (default: NAME.html of the model)",
    )
    parser.add_argument(
        "--engine-package",
        type=path_name,
        metavar="PATH",
        help=f"the npm package {NAME}, as npm packs it (.tgz) or unpacked (default: npm downloads it once)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
