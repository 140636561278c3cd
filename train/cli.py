"""How a command ends: done, stopped, or with one line that says what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from runtime.common import cli, terminal
from runtime.common.errors import UserError

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def run_cli(run: Callable[[], int], needed: str, stopped: Callable[[], str]) -> int:
    """The exit code of a command: what `run` returns, 130 for Ctrl-C, and otherwise as runtime's commands.

    `needed` says how to install what is lacking, `stopped` what Ctrl-C leaves behind.
    """

    def told() -> int:
        try:
            code = run()
            sys.stdout.flush()  # here and not at Python's end, where a full disk would be a traceback
            return code
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed; {needed}") from None
        except KeyboardInterrupt:
            terminal.print_info(f"stopped: {stopped()}")
            return INTERRUPTED
        except OSError as error:  # most often a full disk
            reason = f"{error.strerror or error}; make room there, or mend that, and try again"
            raise OSError(error.errno, reason, error.filename) from None

    return cli.run_cli(told)
