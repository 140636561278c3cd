"""Progress of a long stage: a bar on a terminal, elsewhere a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

PLAIN_LINE_EVERY = 10.0  # seconds: a log shows that the work continues and does not fill up
RATE_WINDOW = 30.0  # seconds over which the rate is measured


class Rate:
    """Work per second over the last RATE_WINDOW seconds.

    The first step is left out: it includes one-time costs such as compiling a model.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.done = 0.0
        self.steps: deque[tuple[float, float]] = deque()  # time, and the work done until then

    def add(self, work: float) -> None:
        """Count finished work."""
        now = self.clock()
        self.done += work
        if len(self.steps) > 1 and now - self.steps[-2][0] < RATE_WINDOW / 100:  # bounds the length
            self.steps.pop()
        self.steps.append((now, self.done))
        while len(self.steps) > 2 and self.steps[1][0] <= now - RATE_WINDOW:
            self.steps.popleft()

    def per_second(self) -> float:
        """The rate between the oldest and the newest step of the window; 0 before the second step."""
        if len(self.steps) < 2:
            return 0.0
        (start, before), (end, after) = self.steps[0], self.steps[-1]
        return (after - before) / max(end - start, 1e-9)


class Progress:
    """`with Progress("features", 500, "photos") as progress: progress.step(16)`

    `left` returns a text such as "2 min left in all", which replaces the time left of this stage.
    """

    def __init__(self, name: str, total: int, unit: str, left: Callable[[], str] | None = None) -> None:
        from tqdm import tqdm  # here, so that a command without tqdm can print what to install

        self.name, self.total, self.unit, self.left = name, total, unit, left
        self.duration: Callable[[float], str] = tqdm.format_interval
        self.done = 0
        self.note = ""
        self.line_is_current = False
        self.rate = Rate()
        self.started = self.printed = time.monotonic()
        # The bar's own smoothed rate starts with the first step, which is the slowest; see Rate.
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = tqdm(total=total, desc=name, bar_format=layout) if sys.stderr.isatty() else None

    def step(self, count: int, note: str = "") -> None:
        """Add `count` finished units; `note` appears beside the count."""
        self.done += count
        self.note = note
        self.line_is_current = False
        if count:
            self.rate.add(count)
        if self.bar is not None:
            self.bar.set_postfix_str(self._status(), refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.printed >= PLAIN_LINE_EVERY:
            self._print_line()

    def seconds_left(self) -> float | None:
        """Remaining units over the recent rate; None before there is a rate."""
        rate = self.rate.per_second()
        return (self.total - self.done) / rate if rate else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif not self.line_is_current:
            self._print_line()

    def _print_line(self) -> None:
        self.printed, self.line_is_current = time.monotonic(), True
        print(
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, {self._status()}",
            file=sys.stderr,
            flush=True,
        )

    def _status(self) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        seconds = self.seconds_left()
        rate = self.rate.per_second()
        if self.done >= self.total:
            rate = self.done / elapsed
            left = f"took {self.duration(elapsed)}"
        elif self.left:
            left = self.left()
        else:
            left = "starting" if seconds is None else f"{self.duration(seconds)} left"
        parts = [f"{rate:.1f} {self.unit}/s", left] if rate else [left]
        return ", ".join([*parts, self.note] if self.note else parts)


def format_duration(seconds: float) -> str:
    """Seconds as a text, such as "1.5 s", "6 min" and "1 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
