"""Fuzz the parsers of untrusted input: `python -m tests.fuzz [TARGET…] --seconds 60`.

A target fails if it raises an exception other than its user error, exceeds its memory limit, or takes more
than ten seconds for one input. build/fuzz/found keeps the failing inputs; build/fuzz/corpus keeps the inputs
that reached new lines, and the next run starts from them. Exit code 1 means that a target failed.
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

from tests.fuzz.targets import TARGETS
from tests.helpers import ROOT

MAX_SECONDS_PER_INPUT = 10


@dataclass(frozen=True)
class FuzzResult:
    inputs: int
    peak_mb: int
    slowest_s: int
    failure: str  # empty if the target passed
    log: Path


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    names = arguments.targets or list(TARGETS)
    print(f"{len(names)} targets, {arguments.seconds} s each, {arguments.jobs} at a time", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(
            pool.map(lambda name: run_target(name, arguments.out, arguments.seconds), names)  # in parallel
        )
    for name, result in zip(names, results, strict=True):
        print(
            f"{name:10} {result.inputs:>10,} inputs  "
            f"peak {result.peak_mb:>4} of {TARGETS[name].max_mb:>4} MB  "
            f"slowest {result.slowest_s} s  {result.failure or 'passed'}"
        )
        if result.failure:
            print(f"{'':10} {result.log}", file=sys.stderr)
    return 1 if any(result.failure for result in results) else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)"
    )
    parser.add_argument(
        "--seconds", type=int, default=600, help="time for each target (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="targets at a time (default: the number of cores)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", metavar="DIR")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"unknown target: {', '.join(unknown)}; choose from {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        parser.error("atheris is not installed; it has wheels for Linux on x86_64: pip install '.[fuzz]'")
    return arguments


def run_target(name: str, out: Path, seconds: int, command: Sequence[str] = ()) -> FuzzResult:
    """Run one target in its own process, from its seeds and the corpus of earlier runs.

    `command` replaces the default command of that process.
    """
    target = TARGETS[name]
    seeds, corpus, found = out / "seeds" / name, out / "corpus" / name, out / "found"
    for folder in (seeds, corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={target.max_bytes}",
        f"-rss_limit_mb={target.max_mb}",
        f"-timeout={MAX_SECONDS_PER_INPUT}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
        "-reload=0",
    ]
    command = command or [sys.executable, "-m", "tests.fuzz.worker", name]
    log = found / f"{name}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            [*command, *flags, str(corpus), str(seeds)], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    stats = {key: int(value) for key, value in re.findall(r"^stat::(\w+):\s*(\d+)", text, re.MULTILINE)}
    return FuzzResult(
        stats.get("number_of_executed_units", 0),
        stats.get("peak_rss_mb", 0),
        stats.get("slowest_unit_time_sec", 0),
        failure_in(text) if done.returncode or not stats else "",
        log,
    )


def failure_in(log: str) -> str:
    """The line of libFuzzer's log that names the failure, and the path of the failing input."""
    lines = re.findall(
        r"^.*(?:Uncaught Python exception|ERROR: libFuzzer: .*|\w+(?:Error|Exception):.*)$", log, re.M
    )
    exceptions = [line for line in lines if "libFuzzer" not in line and "Uncaught" not in line]
    inputs = re.findall(r"Test unit written to (\S+)", log)
    reason = (exceptions or lines or ["the process did not start"])[0].strip()[:120]
    return f"FAILED {reason} {' '.join(inputs)}".strip()


if __name__ == "__main__":
    sys.exit(main())
