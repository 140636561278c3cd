"""Train an image classifier on a folder of photos and write a run folder."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from runtime.common.cli import ArgumentParser, path_name
from runtime.common.errors import UserError
from runtime.common.terminal import suppress_native_stderr
from train.cache import add_cache_flags
from train.cli import add_run_flags, run_cli
from train.config import TrainConfig
from train.inputs import find_inputs
from train.run_writer import checkpoint_dir
from train.settings import add_flags, settings_from_flags

EXAMPLES = """\
examples:
  python -m train photos --limit 40 --out runs/try
      a quick try with at most 40 photos per class: about 2 minutes for 5 classes on 2 cores
  python -m train photos --fine-tune block5 --out runs/mine
      the most accurate model: about an hour for 2,000 photos on 2 cores
  python -m train photos --add taught --out runs/better
      also learn from the photos that a device was taught with, in class folders
  python -m train photos --dry-run
      print what would be trained and how long it would take on this machine, and train nothing

PHOTOS holds one folder per class, or train/ and test/ with one folder per class each (val/ is optional).
A folder named none holds photos of none of the classes, such as the empty scene: the model learns to reject
them, and none does not become a label.
Features of photos are stored, so the next run on the same photos needs seconds instead of minutes.

exit codes: 0 success, 2 usage error, 130 stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 success, 2 error, 130 stopped by Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if arguments.resume and not arguments.out:
        _parser().error("--resume continues an interrupted run; also pass its --out RUN")
    out: Path | None = arguments.out

    def run() -> int:
        nonlocal out
        config = _config(arguments)
        out = config.out
        if find_spec("keras") is None:  # before the minutes that photos and pictures may take
            raise ModuleNotFoundError(name="keras")
        with ExitStack() as stack:
            inputs = find_inputs(config, stack)
            with suppress_native_stderr():  # TensorFlow's start messages
                from train.pipeline import train
            return train(config, inputs)

    return run_cli(run, lambda: _after_ctrl_c(out, arguments.cache))


def _config(arguments: argparse.Namespace) -> TrainConfig:
    settings = settings_from_flags(arguments)
    if arguments.none and not settings.negatives:
        raise UserError(
            f"--none {arguments.none}: has no effect with --no-negatives, the default of the "
            "article recipe; give --negatives, or leave out --none"
        )
    if settings.known and settings.recipe == "article":
        raise UserError("--known: the article recipe has no detector of unknown pictures; leave it out")
    started = datetime.now(timezone.utc)
    return TrainConfig(
        settings=settings,
        out=arguments.out or Path("runs") / f"{started:%Y%m%d-%H%M%S}-{settings.recipe}",
        photos=arguments.photos,
        none=arguments.none,
        add=arguments.add,
        weights=arguments.weights,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        dry_run=arguments.dry_run,
        cache=arguments.cache,
        cache_limit=arguments.cache_limit,
        logs=arguments.logs,
        ray=arguments.ray,
    )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m train",
        usage="%(prog)s [PHOTOS] [--out RUN] [options]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = parser.add_argument_group("common options")
    common.add_argument(
        "photos",
        nargs="?",
        type=path_name,
        metavar="PHOTOS",
        help="folder of class folders (default: download 3,670 flower photos, 229 MB)",
    )
    common.add_argument(
        "--none",
        type=path_name,
        metavar="DIR",
        help="folder of photos of none of the classes: the model learns to reject them, and drawings of "
        "objects that come with the project (default: PHOTOS/none)",
    )
    common.add_argument(
        "--add",
        type=path_name,
        metavar="DIR",
        help="folder of class folders, such as that of python -m runtime.teach --export DIR: train on these "
        "photos too; val and test stay as they are",
    )
    add_run_flags(common, "runs/TIME-RECIPE")
    common.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be trained and an estimate of the time; train nothing",
    )
    machine = parser.add_argument_group("storage and hardware (advanced)")
    _add_machine_flags(machine)
    add_flags(common, parser.add_argument_group("training settings (advanced)"))
    return parser


def _add_machine_flags(group: argparse._ArgumentGroup) -> None:
    add_cache_flags(group)
    group.add_argument(
        "--logs",
        type=path_name,
        metavar="DIR",
        help="write history.csv and TensorBoard files to DIR/RUN after every epoch",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute features on a Ray cluster: HOST:PORT of its head, auto for the cluster of this "
        "machine, or local for a cluster that starts here",
    )
    group.add_argument(
        "--weights",
        metavar="PATH|imagenet",
        help="VGG16 weights: .safetensors, Keras .h5, or Keras's own download (default: the bundled weights)",
    )


def _after_ctrl_c(out: Path | None, cache: str | None) -> str:
    if out and checkpoint_dir(out).is_dir():
        return f"no run was written; the same command with --out {shlex.quote(str(out))} --resume continues"
    if cache == "none":
        return "no run was written"
    return "no run was written; the same command continues with the stored features"


if __name__ == "__main__":
    sys.exit(main())
