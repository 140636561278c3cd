"""Finds the fastest way to run a model on this machine: `python -m runtime.bench [--csv FILE] [--save]`.

Every file of the model runs in every installed engine that reads it, on 1, 2, 4, … threads up to all cores.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.benchmark.report import BenchRow, format_report, to_csv
from runtime.benchmark.runner import (
    DEFAULT_RUNS,
    DEFAULT_SECONDS,
    ROUNDS,
    BenchResults,
    run_benchmark,
)
from runtime.common.atomic import atomic_write
from runtime.common.cli import EXIT_INTERRUPTED, EXIT_SOME_FAILED, ArgumentParser, positive_int, run_cli
from runtime.common.errors import ModelError, UserError
from runtime.common.terminal import print_error
from runtime.common.text import pluralize, printable
from runtime.inference.engine_cache import EngineSelection, save_selection
from runtime.inference.engines import ENGINES, choose_engine, engine_name, is_installed
from runtime.model_file.index import IndexedFile
from runtime.model_file.loader import KEY_VARIABLE, ModelFile, open_model
from runtime.model_file.selection import choose_model


@dataclass(frozen=True)
class BenchOptions:
    """The command's flags."""

    model: str | None
    key: str | None
    runs: int
    seconds: float
    csv: Path | None
    save: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 success, 1 a file did not run in an engine, 2 usage error, no model, no engine."""
    return run_cli(lambda: _bench(_parse_arguments(argv)))


def _parse_arguments(argv: Sequence[str] | None) -> BenchOptions:
    def seconds(text: str) -> float:
        if not 0 < (number := float(text)) < 1e6:
            raise ValueError
        return number

    parser = ArgumentParser(
        prog="python -m runtime.bench",
        description="Measure a model's files in every installed engine on this machine.",
        epilog="Exit codes: 0 success, 1 an engine failed on a file, 2 usage error, no model, no engine.",
    )
    parser.add_argument(
        "--model", metavar="PATH", help="folder with a model.json, or a file (default: as runtime.classify)"
    )
    parser.add_argument(
        "--key",
        metavar="PUBLIC.pem",
        help=f"measure only a model signed with this key (default: the key that {KEY_VARIABLE} names)",
    )
    parser.add_argument(
        "--runs",
        type=positive_int,
        metavar="N",
        default=DEFAULT_RUNS,
        help=f"inferences per combination, over {ROUNDS} rounds (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        metavar="S",
        default=DEFAULT_SECONDS,
        help="time limit for the inferences of a combination (default: %(default)g)",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="store the fastest combination; --engine auto then uses it on this machine",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write all values, as in benchmarks/reference/"
    )
    return BenchOptions(**vars(parser.parse_args(argv)))


def _bench(options: BenchOptions) -> int:
    if options.key is not None:
        os.environ[KEY_VARIABLE] = options.key  # the worker processes read it
    choice = choose_model(options.model)
    if options.save and not choice.candidates:
        raise ModelError(f"{choice.path}: --save needs the model.json that the export wrote beside it")
    if options.csv:
        _check_csv(options.csv)
    paths = [choice.path.parent / file.file for file in choice.candidates] or [choice.path]
    models = [open_model(path) for path in paths]
    _require_engine(models)
    results, is_complete = BenchResults((), {}), True
    try:
        for results in run_benchmark(models, options.runs, options.seconds):  # noqa: B007 (used below)
            pass
    except KeyboardInterrupt:
        is_complete = False
    if results.rows:
        print(format_report(results.rows))
    for job, reason in results.failed.items():
        print_error(f"{job}: {reason}")
    if not is_complete:
        print("stopped: nothing was written or saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    if results.rows:
        _write_results(results.rows, options, choice.candidates)
    return EXIT_SOME_FAILED if results.failed else 0


def _check_csv(path: Path) -> None:
    """Raises UserError if the file cannot be written, before a measurement of minutes."""
    if os.path.isdir(path):
        raise UserError(f"--csv {path}: is a folder: name a file in it")
    if not os.path.isdir(path.absolute().parent):
        raise UserError(f"--csv {path}: its folder does not exist: create it first")
    if path.exists() and not path.is_file():
        raise UserError(f"--csv {path}: is not a file: choose another")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"--csv {path}: you may not write into its folder: choose another")


def _require_engine(models: Sequence[ModelFile]) -> None:
    """Raises EngineError, which says what to install, if no installed engine reads any of the files."""
    formats = {ENGINES[engine].format for engine in ENGINES if is_installed(engine)}
    if not any(model.format in formats for model in models):
        choose_engine(models[0].format)


def _write_results(rows: Sequence[BenchRow], options: BenchOptions, files: Sequence[IndexedFile]) -> None:
    """Writes the CSV file and stores the fastest combination, as the options ask for."""
    if options.csv:  # first: the cache may not be writable
        try:
            with atomic_write(options.csv) as file:
                file.write(to_csv(rows).encode())
        except OSError as error:
            raise UserError(f"{options.csv}: {error.strerror or error}: choose another --csv") from None
    if options.save:
        saved = _save(rows, files)
        combination = f"{saved.file} in {saved.engine} on {pluralize(saved.threads, 'thread')}"
        less_exact = f"; {rows[0].file} is faster, but can be less exact" if saved is not rows[0] else ""
        print(printable(f"saved: --engine auto uses {combination}{less_exact}"))
    elif files:
        print("next: add --save to make --engine auto use the fastest combination")


def _save(rows: Sequence[BenchRow], files: Sequence[IndexedFile]) -> BenchRow:
    """Stores the fastest combination of the model, and of each of its files, which --model may name.

    Returns that of the model. A full_int8 file can be less exact, so it is chosen only if no int8 file ran.
    """
    skipped = {"full_int8"} if any(row.precision == "int8" for row in rows) else set()
    of_model = next(row for row in rows if row.precision not in skipped)
    groups = [(tuple(files), of_model)]
    for file in files:
        groups += [((file,), row) for row in rows if row.sha256 == file.sha256][:1]
    try:
        for group, row in groups:
            engine = engine_name(row.engine)
            save_selection(
                group, EngineSelection(row.sha256, engine, row.threads, row.median_ms, row.measured)
            )
    except (OSError, RuntimeError) as error:
        raise UserError(f"the cache: {error}: set XDG_CACHE_HOME to a writable folder") from None
    return of_model


if __name__ == "__main__":
    sys.exit(main())
