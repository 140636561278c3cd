"""Fuzz the parsers of what strangers write: `python -m tests.fuzz [TARGET…] --seconds 60`.

A target fails when it raises anything but its user's error, takes more memory than it may, or more than ten
seconds for one input. What was found stays in build/fuzz/found; what reached new lines in build/fuzz/corpus,
where the next run goes on. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target
from tests.helpers import ROOT

SLOWEST = 10  # seconds for one input


@dataclass(frozen=True)
class Outcome:
    inputs: int
    peak_mb: int
    slowest_s: int
    found: str  # "" when nothing was
    log: Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (%(default)s)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="targets (the cores)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", metavar="DIR")
    arguments = parser.parse_args(argv)
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        parser.error("atheris is not installed; it has wheels for Linux on x86_64: pip install '.[fuzz]'")
    print(f"{len(names)} targets, {arguments.seconds} s each, {arguments.at_once} at once", flush=True)
    with ThreadPoolExecutor(arguments.at_once) as pool:
        runs = {
            name: pool.submit(
                run, [sys.executable, "-m", "tests.fuzz.one", name], name, arguments.out, arguments.seconds
            )
            for name in names
        }
        outcomes = {name: running.result() for name, running in runs.items()}
    for name, outcome in outcomes.items():
        print(
            f"{name:10} {outcome.inputs:>10,} inputs  "
            f"peak {outcome.peak_mb:>4} of {TARGETS[name].megabytes:>4} MB  "
            f"slowest {outcome.slowest_s} s  {outcome.found or 'nothing found'}"
        )
        if outcome.found:
            print(f"{'':10} {outcome.log}", file=sys.stderr)
    return 1 if any(outcome.found for outcome in outcomes.values()) else 0


def run(command: Sequence[str], name: str, out: Path, seconds: int) -> Outcome:
    """Runs one target's process, `command`, from its seeds and the corpus of earlier runs."""
    target: Target = TARGETS[name]
    seeds, corpus, found = out / "seeds" / name, out / "corpus" / name, out / "found"
    for folder in (seeds, corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={target.longest}",
        f"-rss_limit_mb={target.megabytes}",
        f"-timeout={SLOWEST}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
        "-reload=0",
    ]
    log = found / f"{name}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            [*command, *flags, str(corpus), str(seeds)], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    stats = {key: int(value) for key, value in re.findall(r"^stat::(\w+):\s*(\d+)", text, re.MULTILINE)}
    return Outcome(
        stats.get("number_of_executed_units", 0),
        stats.get("peak_rss_mb", 0),
        stats.get("slowest_unit_time_sec", 0),
        _found(text) if done.returncode or not stats else "",
        log,
    )


def _found(text: str) -> str:
    """The line of libFuzzer's log that says what it was."""
    said = re.findall(
        r"^.*(?:Uncaught Python exception|ERROR: libFuzzer: .*|\w+(?:Error|Exception):.*)$", text, re.M
    )
    python = [line for line in said if "libFuzzer" not in line and "Uncaught" not in line]
    kept = re.findall(r"Test unit written to (\S+)", text)
    return f"FOUND {(python or said or ['it did not start'])[0].strip()[:120]} {' '.join(kept)}".strip()


if __name__ == "__main__":
    sys.exit(main())
