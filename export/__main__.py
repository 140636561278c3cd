"""Convert a trained run to TFLite and ONNX files, each compared with the trained model in its engines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.parity.gates import MIN_PHOTOS
from export.parity.photo_counts import EVERY_PHOTO, UNCOMPRESSED_PHOTOS
from export.pipeline import TFLITE_ONLY, ExportConfig, export, file_keys
from export.targets.registry import TARGETS
from export.targets.rk3588 import DEFAULT_PYTHON
from runtime.common.cli import ArgumentParser, positive_int
from runtime.inference.engines import ENGINES
from train.cli import run_cli

_EPILOG = """\
An uncompressed run with --int8 takes 3 to 5 minutes on 2 cores, and longer with more than 250 --photos. A
compressed run takes a fraction of that. Before it converts, the command prints an estimate.

exit codes: 0 success, 2 usage error, 3 a file failed parity (nothing is replaced), 130 stopped with Ctrl-C
"""

# Each has a flag of its name.
_OPTIONAL_PRECISIONS = ("float16", "dynamic", "int8", "full_int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 (usage error), 3 (parity failed) or 130 (Ctrl-C)."""
    config = _parse(argv)
    return run_cli(lambda: export(config), lambda: "nothing was written or replaced")


def _parse(argv: Sequence[str] | None) -> ExportConfig:
    parser = _parser()
    _add_target_flags(parser)
    arguments = parser.parse_args(argv)
    engines = tuple(dict.fromkeys(arguments.engines)) if arguments.engines else None
    formats = {ENGINES[engine].format for engine in engines or ENGINES}
    for name in TFLITE_ONLY:
        if getattr(arguments, name) and "tflite" not in formats:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} makes a TFLite file, which no engine of --engines runs; add litert")
    needed = {TARGETS[name].file for name in arguments.target}
    for format in sorted({format for format, _ in needed}):
        if format not in formats:
            parser.error(f"--target needs a file of the format {format}, which no engine of --engines runs")
    wanted = {name for name in _OPTIONAL_PRECISIONS if arguments.all or getattr(arguments, name)}
    wanted |= {precision for _, precision in needed}
    precisions = ("float32", *(name for name in _OPTIONAL_PRECISIONS if name in wanted))
    made = [f"{precision}.{format}" for format, precision in file_keys(precisions, engines)]
    for name in arguments.keep or ():
        if name not in made:
            parser.error(f"--keep {name}: this export makes {', '.join(made)}; add a flag such as --int8")
    return ExportConfig(
        run=arguments.run,
        precisions=precisions,
        out=arguments.out,
        engines=engines,
        photos=arguments.photos,
        keep=tuple(arguments.keep) if arguments.keep else None,
        photos_root=arguments.photos_root,
        add=arguments.add,
        signing_key=arguments.sign,
        targets=tuple(dict.fromkeys(arguments.target)),
        target_python=arguments.target_python,
    )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m export",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="run folder (default: the newest under runs/)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: models/ and the name of the run)"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="add int8 files, the smallest and fastest; a photo takes about 8 times longer with an "
        "uncompressed model than with a compressed one (python -m train.compress RUN --reduce 10)",
    )
    parser.add_argument("--float16", action="store_true", help="add files with float16 weights")
    parser.add_argument("--dynamic", action="store_true", help="add a TFLite file with int8 weights only")
    parser.add_argument(
        "--full-int8",
        action="store_true",
        help="add a TFLite file whose convolutions are all int8, for microcontrollers and NPUs",
    )
    parser.add_argument("--all", action="store_true", help="add the files of the four flags above")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"make only the files that these engines run, and compare them only there: {', '.join(ENGINES)} "
        "(default: every installed engine); --engines litert makes TFLite files only",
    )
    parser.add_argument(
        "--photos",
        type=positive_int,
        metavar="N",
        help="compare every file on N test photos, spread evenly over the classes (default: all; for an "
        f"uncompressed run {UNCOMPRESSED_PHOTOS}, and {EVERY_PHOTO} for float32 and float16 files); some "
        f"limits apply from {MIN_PHOTOS} photos on",
    )
    parser.add_argument(
        "--photos-root", type=Path, metavar="DIR", help="the folder of the run's photos, if it has moved"
    )
    parser.add_argument("--add", type=Path, metavar="DIR", help="training's --add folder, if it has moved")
    parser.add_argument(
        "--keep",
        nargs="+",
        metavar="FILE",
        help="compare all files, but keep only these, such as int8.tflite",
    )
    parser.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help="sign the folder with this private key (PEM); a device with the public key can verify it",
    )
    return parser


def _add_target_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        nargs="+",
        choices=TARGETS,
        default=[],
        metavar="NAME",
        help="also compile for these boards, and add the files that this needs (docs/targets.md): "
        f"{', '.join(TARGETS)}",
    )
    parser.add_argument(
        "--target-python",
        type=Path,
        default=DEFAULT_PYTHON,
        metavar="PATH",
        help="Python of the environment with rknn-toolkit2, for the target rk3588 (default: %(default)s)",
    )


if __name__ == "__main__":
    sys.exit(main())
