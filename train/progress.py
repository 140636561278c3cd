"""How far long work has come: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

PLAIN_LINE_EVERY = 10.0  # seconds: enough to see that a log is alive, not enough to fill it


class Progress:
    """`with Progress("features", 500, "photos") as progress: progress.step(16)`

    `left` returns a text such as "2 min left in all", shown instead of this stage's own time left.
    """

    def __init__(self, what: str, total: int, unit: str, left: Callable[[], str] | None = None) -> None:
        from tqdm import tqdm  # here, so that a command without it can still say what is not installed

        self.what, self.total, self.unit, self.left = what, total, unit, left
        self.interval: Callable[[float], str] = tqdm.format_interval
        self.done = 0
        self.note = ""
        self.told = False
        self.started = self.printed = time.monotonic()
        shown = {"bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"} if left else {}
        self.bar = tqdm(total=total, desc=what, unit=f" {unit}", **shown) if sys.stderr.isatty() else None

    def step(self, count: int, note: str = "") -> None:
        """Add `count` to what is done; `note` is shown beside it."""
        self.done += count
        self.note = note
        self.told = False
        if self.bar is not None:
            self.bar.set_postfix_str(self.left() if self.left else note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.printed >= PLAIN_LINE_EVERY:
            self._line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif not self.told:
            self._line()

    def _line(self) -> None:
        self.printed, self.told = time.monotonic(), True
        seconds = max(self.printed - self.started, 1e-9)
        rate = self.done / seconds
        if self.done < self.total:
            when = f"{self.interval((self.total - self.done) / rate)} left" if rate else "starting"
            when = self.left() if self.left else when
        else:
            when = f"took {self.interval(seconds)}"
        line = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rate:.1f} {self.unit}/s, {when}"
        print(f"{line}, {self.note}" if self.note else line, file=sys.stderr, flush=True)
