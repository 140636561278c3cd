"""The exit code of a training command, and the one line that it prints when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable

from runtime.common import cli, terminal
from runtime.common.errors import UserError

INTERRUPTED = cli.EXIT_INTERRUPTED
# One line installs the packages of training, compression and export.
INSTALL = "in a clone, install all that train and export need: pip install '.[train,export]' (2.6 GB)"


def run_cli(run: Callable[[], int], install: str, on_interrupt: Callable[[], str]) -> int:
    """The exit code of `run`, 130 after Ctrl-C, or 2 after an error, which is printed as one line.

    `install` is the command that installs a missing package. `on_interrupt` describes what Ctrl-C leaves.
    """

    def guarded() -> int:
        try:
            code = run()
            sys.stdout.flush()  # a full disk would otherwise raise a traceback when Python ends
            return code
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed; {install}") from None
        except KeyboardInterrupt:
            terminal.print_info(f"stopped: {on_interrupt()}")
            return INTERRUPTED
        except OSError as error:  # most often a full disk
            reason = f"{error.strerror or error}; free some disk space or fix the path, then try again"
            raise OSError(error.errno, reason, error.filename) from None

    return cli.run_cli(guarded)
