"""How a command ends: done, stopped, or with one line that says what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from runtime.errors import UserError

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def ended(run: Callable[[], int], needed: str, stopped: str) -> int:
    """The exit code of a command: what `run` returns, 2 for a usage error, 130 for Ctrl-C.

    `needed` says how to install what is lacking, `stopped` what Ctrl-C leaves behind.
    """
    # What the terminal's encoding lacks, such as a table's Δ or a photo's name, is escaped, not fatal.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; {needed}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        return INTERRUPTED
