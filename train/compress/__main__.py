"""Compress a trained run: prune it, by default to a tenth of the multiplications, and restore accuracy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path

from runtime.common.cli import ArgumentParser
from runtime.common.terminal import suppress_native_stderr
from runtime.inference.engines import ENGINES
from train.cache import add_cache_flags
from train.cli import add_run_flags, run_cli
from train.compress.config import CompressConfig, CompressSettings
from train.compress.inputs import find_inputs
from train.compress.latency_table import BOARDS
from train.run_writer import checkpoint_dir

EPILOG = """examples:
  python -m train.compress runs/mine
      a tenth of the multiplications; about an hour for 1,700 training photos on 2 cores
  python -m train.compress runs/mine-compressed --reduce 30
      a thirtieth in two steps: the run of the first step is compressed again
  python -m train.compress runs/mine --epochs 0
      without distillation, in a third of the time: 90.6 instead of 93.8 % top-1 on tf_flowers
  python -m train.compress runs/mine --target-ms 5
      the largest network that takes at most 5 ms on this machine
  python -m train.compress runs/mine --target-ms 60 --board pi4
      the same for a Raspberry Pi 4, from a built-in estimate
  python -m train.compress runs/mine --max-mb 1
      the largest network whose int8 file has at most 1 MB; --reduce 10 --max-mb 1 keeps both limits

exit codes: 0 success, 2 usage error, 130 stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 done, 2 a usage error, 130 stopped by Ctrl-C."""
    config = parse_arguments(argv)
    started: list[Path] = []  # the output folder, once the inputs are checked

    def run() -> int:
        with ExitStack() as stack:
            inputs = find_inputs(config, stack)
            started.append(inputs.out)
            with suppress_native_stderr():  # TensorFlow's messages at import
                from train.compress.pipeline import compress
            return compress(config, inputs)

    def after_ctrl_c() -> str:
        continues = any(checkpoint_dir(out).is_dir() for out in started)
        return "no run is written" + ("; the same command with --resume continues" if continues else "")

    return run_cli(run, after_ctrl_c)


def parse_arguments(argv: Sequence[str] | None) -> CompressConfig:
    default = CompressSettings()
    parser = ArgumentParser(
        prog="python -m train.compress",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of python -m train")
    _add_target_flags(parser, default)
    _add_output_flags(parser)
    add_cache_flags(parser.add_argument_group("storage"))
    _add_advanced_flags(parser, default)
    arguments = parser.parse_args(argv)
    for flag, given in (("--latency-table", arguments.latency_table), ("--board", arguments.board)):
        if given and arguments.target_ms is None:
            parser.error(f"{flag} works with --target-ms; give that too")
    if arguments.reduce is None:
        only_size = arguments.max_mb is not None and arguments.target_ms is None
        arguments.reduce = 1.0 if only_size else default.reduce
    values = vars(arguments)
    settings = CompressSettings(**{field.name: values.pop(field.name) for field in fields(CompressSettings)})
    return CompressConfig(settings=settings, **values)


def _add_target_flags(parser: argparse.ArgumentParser, default: CompressSettings) -> None:
    group = parser.add_argument_group("target")
    goal = group.add_mutually_exclusive_group()
    goal.add_argument(
        "--reduce",
        type=_number_above(1),
        metavar="X",
        help="divide the multiplications of the uncompressed network by X "
        f"(default: {default.reduce:g}; with --max-mb alone: no limit)",
    )
    goal.add_argument(
        "--target-ms",
        type=_number_above(0),
        metavar="MS",
        help="instead of --reduce: make the largest network that classifies a photo in MS milliseconds",
    )
    group.add_argument(
        "--max-mb",
        type=_number_above(0),
        metavar="MB",
        help="limit the int8 file to MB megabytes (10^6 bytes), predicted from the number of weights; may be "
        "combined with --reduce or --target-ms",
    )
    group.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default=default.engine,
        help=f"for --target-ms: engine to time, with an int8 file on all cores (default: {default.engine})",
    )
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--latency-table",
        metavar="CSV",
        help="for --target-ms: another board's latencies instead of this machine's; "
        "columns engine, gmacs, ms",
    )
    source.add_argument(
        "--board",
        choices=tuple(BOARDS),
        help="for --target-ms: a built-in estimate for a Raspberry Pi instead, with 4 threads in litert or "
        "onnx; no board was measured",
    )
    group.add_argument(
        "--size",
        type=_input_size,
        metavar="PIXELS|auto",
        help="width and height of the input in pixels; auto chooses 224, 192, 160 or 128 (default: auto)",
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    add_run_flags(group, "runs/NAME-compressed")
    group.add_argument(
        "--photos-root",
        type=Path,
        metavar="DIR",
        help="the folder of the run's photos, if it has moved since training",
    )
    group.add_argument(
        "--none",
        type=Path,
        metavar="DIR",
        help="the folder that --none named in training, if it has moved since",
    )
    group.add_argument(
        "--add",
        type=Path,
        metavar="DIR",
        help="the folder that --add named in training, if it has moved since",
    )
    group.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="write history.csv and TensorBoard files to DIR/RUN after every epoch",
    )


def _add_advanced_flags(parser: argparse.ArgumentParser, default: CompressSettings) -> None:
    group = parser.add_argument_group("advanced")
    for name, kind, text in (
        ("reconstruction_photos", _count(10), "training photos to which pruned layers are fitted again"),
        ("views", _count(1, 8), "views of each training photo: itself, its mirror image, random crops"),
        ("epochs", _count(0), "epochs of distillation; 0 skips it"),
        ("batch", _count(1), "photos in a training step"),
        ("learning_rate", _number_above(0), "the peak learning rate of distillation"),
        ("seed", _count(0), "the seed of all random choices"),
    ):
        value = getattr(default, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=value,
            metavar="N",
            help=f"{text} (default: {value:g})",
        )


def _number_above(low: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        with suppress(ValueError):
            if low < (value := float(text)) < float("inf"):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above {low:g}")

    return number


def _count(low: int, high: int = 2**32 - 1) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        with suppress(ValueError):
            if low <= (value := int(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return whole_number


def _input_size(text: str) -> int | None:
    if text == "auto":
        return None
    with suppress(ValueError):
        if 64 <= (value := int(text)) <= 224 and value % 32 == 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not auto or a multiple of 32 from 64 to 224")


if __name__ == "__main__":
    sys.exit(main())
