"""Shared parts of the training commands: the flags of the written run, exit codes, and one-line errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from runtime.common import cli, terminal
from runtime.common.errors import UserError
from runtime.common.packages import install_command


def add_run_flags(group: argparse._ArgumentGroup, default_out: str, resume: bool = True) -> None:
    """Add --out, --overwrite and, with `resume`, --resume.

    `default_out` describes the default of --out in the help.
    """
    group.add_argument(
        "--out", type=cli.path_name, metavar="RUN", help=f"run folder to write (default: {default_out})"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run folder if it exists")
    if resume:
        group.add_argument(
            "--resume",
            action="store_true",
            help="continue an interrupted run: the same command with the same --out",
        )


def require_packages(names: Sequence[str], extras: str) -> None:
    """Raises UserError that names all missing packages at once, and the extras that install them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {are} not installed: {install_command(extras)}")


def run_cli(run: Callable[[], int], on_interrupt: Callable[[], str], extras: str = "train,export") -> int:
    """The exit code of `run`, 130 after Ctrl-C, or 2 after an error, which is printed as one line.

    `on_interrupt` returns the message after Ctrl-C. `extras` have the packages that may be missing.
    """

    def guarded() -> int:
        try:
            code = run()
            sys.stdout.flush()  # a full disk would otherwise raise a traceback when Python ends
            return code
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed: {install_command(extras)}") from None
        except KeyboardInterrupt:
            return interrupted()
        except OSError as error:  # most often a full disk
            reason = f"{error.strerror or error}; free some disk space or fix the path, then try again"
            raise OSError(error.errno, reason, error.filename) from None
        except Exception as error:
            # TensorFlow's C++ code turns Ctrl-C into an exception with this word in its text.
            if isinstance(error, UserError) or "KeyboardInterrupt" not in str(error):
                raise
            return interrupted()

    def interrupted() -> int:
        terminal.print_info(f"stopped: {on_interrupt()}")
        return cli.EXIT_INTERRUPTED

    return cli.run_cli(guarded)
