"""Measure training on a GPU: features, fine-tuning and the article's recipe, on TensorFlow and on JAX.

    python -m benchmarks.gpu > benchmarks/gpu.md                  installs from the package registry
    python -m benchmarks.gpu --wheels DIR > benchmarks/gpu.md     installs from a folder, without a network
    python -m benchmarks.gpu --python PATH > benchmarks/gpu.md    uses an environment that has all packages

The machine needs a GPU, its driver and Python. The command takes at most --minutes. Each step is a process
with its own time limit; benchmarks/gpu_steps.py holds the steps. The table is printed with the results so far
when a step fails, when the time is over, and after Ctrl-C or SIGTERM. Exit codes: 0 all measured, 1 some
steps have no result, 2 usage error, 130 stopped.

The folder for --wheels is filled on a machine with a network and the same Python:

    pip download -d DIR 'setuptools>=77' wheel '.[train]' 'tensorflow[and-cuda]<2.22'
    pip download -d DIR '.[keras]' 'jax[cuda12]'
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table_head, table_row

ROOT = Path(__file__).resolve().parents[1]
GPU, CPU = "gpu", "cpu"
# Each backend has its own environment, because the packages may require different CUDA libraries.
PACKAGES = {
    "tensorflow": (f"{ROOT}[train]", "tensorflow[and-cuda]>=2.21,<2.22"),
    "jax": (f"{ROOT}[keras]", "jax[cuda12]>=0.10"),
}
LIMITS = {"install": 150, "draw": 60, "features": 90, "fine-tune": 90, "article": 80}  # seconds of a step
MEASURED = ("features", "fine-tune", "article")
# Dense bfloat16 TFLOP/s in NVIDIA's data sheets, by a part of the card's name; the first match counts.
PEAK_TFLOPS = {
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
}
SAME_FEATURES = 0.01  # largest relative error of a photo's features
SAME_LABELS = 0.98  # smallest share of photos with the same label


@dataclass(frozen=True)
class Step:
    """One process: the installation, the drawings, or a measurement on a backend and a device."""

    name: str
    backend: str
    device: str = GPU

    @property
    def title(self) -> str:
        where = f" on the {self.device.upper()}" if self.name in MEASURED else ""
        return f"{self.name}{where}, {self.backend}"


@dataclass(frozen=True)
class Outcome:
    """What a step measured, or the reason why it has no result."""

    step: Step
    seconds: float
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    arguments = parser().parse_args(argv)
    card = "" if arguments.device == CPU else name_of_card()
    if arguments.device == GPU and not card:
        parser().error("nvidia-smi finds no GPU; --device cpu tries the script without one")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outcomes: list[Outcome] = []
    code = 0
    with tempfile.TemporaryDirectory(prefix="vgg-edge-gpu-", dir=arguments.work) as folder:
        try:
            for outcome in run_steps(arguments, Path(folder), started + 60 * arguments.minutes):
                outcomes.append(outcome)
                state = outcome.error or "done"
                print(f"{outcome.step.title}: {state} ({outcome.seconds:.0f} s)", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            code = 130
        peak, seconds = arguments.peak_tflops or peak_of(card), time.monotonic() - started
        print_report(arguments.backends, outcomes, card, peak, seconds)  # before the folder is deleted
    return code or int(any(outcome.error for outcome in outcomes))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="time limit of the command (default: 10)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--wheels", type=Path, metavar="DIR", help="install from this folder of wheels only")
    source.add_argument("--python", metavar="PATH", help="use this environment; install nothing")
    parser.add_argument("--backends", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--device", choices=(GPU, CPU), default=GPU, help="cpu: a trial without a GPU")
    parser.add_argument("--photos", type=int, default=20_000, help="photos to draw (default: 20000)")
    parser.add_argument(
        "--compare", type=int, default=400, help="photos that the CPU computes too (default: 400)"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another base, as in python -m train")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for environments and photos")
    parser.add_argument("--peak-tflops", type=float, help="bfloat16 peak of a card that the script lacks")
    return parser


def name_of_card() -> str:
    """Name, memory and driver of the first GPU, by nvidia-smi; empty without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (found.stdout.splitlines() or [""])[0].strip()


def peak_of(card: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a card; None for an unknown card."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)


def plan(backends: Sequence[str], installed: bool) -> list[Step]:
    """All steps in order: those with a GPU first, so that a short time shows the most."""
    steps = []
    for backend in backends:
        steps += [] if installed else [Step("install", backend)]
        steps += [Step(name, backend) for name in ("draw", *MEASURED)]
    return steps + [Step(name, backend, CPU) for backend in backends for name in MEASURED]


def run_steps(arguments: argparse.Namespace, folder: Path, deadline: float) -> Iterator[Outcome]:
    """Run each step within its limit and the time that is left. A failed step does not end the others."""
    pythons = dict.fromkeys(arguments.backends, arguments.python) if arguments.python else {}
    for step in plan(arguments.backends, bool(arguments.python)):
        left, backend = deadline - time.monotonic(), step.backend
        if step.name == "draw" and (folder / "photos").exists():
            continue
        if left <= 0:
            yield Outcome(step, 0.0, error="not started: the time is over")
        elif step.name != "install" and backend not in pythons:
            yield Outcome(step, 0.0, error="not started: no environment")
        else:
            limit = min(LIMITS[step.name], left)
            print(f"{step.title}: at most {limit:.0f} s of {left:.0f} s left", file=sys.stderr, flush=True)
            if step.name == "install":
                outcome = install(step, arguments, folder, limit)
                if not outcome.error:
                    pythons[backend] = str(outcome.values["python"])
            else:
                command = [pythons[backend], "-m", "benchmarks.gpu_steps", step.name, "--work", str(folder)]
                command += child_flags(step, arguments)
                outcome = run_command(step, command, environment(backend, step, arguments), limit)
            yield outcome


def install(step: Step, arguments: argparse.Namespace, folder: Path, limit: float) -> Outcome:
    """Create an environment and install the packages of a backend; `values` has the path of its Python."""
    env = folder / f"env-{step.backend}"
    python = str(env / "bin" / "python")
    offline = ["--no-index", "--find-links", str(arguments.wheels.resolve())] if arguments.wheels else []
    until = time.monotonic() + limit
    created = run_command(step, [sys.executable, "-m", "venv", str(env)], dict(os.environ), limit)
    if created.error:
        return created
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *offline]
    command += PACKAGES[step.backend]
    installed = run_command(step, command, dict(os.environ), max(until - time.monotonic(), 0))
    seconds = created.seconds + installed.seconds
    return Outcome(step, seconds, {"python": python}, installed.error)


def child_flags(step: Step, arguments: argparse.Namespace) -> list[str]:
    flags = ["--photos", str(arguments.photos), "--compare", str(arguments.compare), "--device", step.device]
    return flags + (["--weights", str(arguments.weights.resolve())] if arguments.weights else [])


def environment(backend: str, step: Step, arguments: argparse.Namespace) -> dict[str, str]:
    """The environment variables of a step. CPU steps see no GPU; GPU steps fail without one."""
    variables = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if step.device == CPU or arguments.device == CPU:
        return {**variables, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    return {**variables, "VGG_EDGE_REQUIRE_GPU": "1"}


def run_command(step: Step, command: Sequence[str], variables: dict[str, str], limit: float) -> Outcome:
    """Run a command for at most `limit` seconds. `values` is the JSON in its last line, if there is one."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=errors, env=variables, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop(process)
        seconds = time.monotonic() - started
        out.seek(0)
        errors.seek(0)
        lines, messages = out.read().splitlines(), errors.read().strip().splitlines()
    if status is None:
        return Outcome(step, seconds, error=f"stopped after its limit of {limit:.0f} s")
    if status:
        reason = (messages or lines or ["no message"])[-1].strip()[:200]
        return Outcome(step, seconds, error=f"failed: {reason}")
    try:
        return Outcome(step, seconds, json.loads(lines[-1]) if lines else {})
    except ValueError:
        return Outcome(step, seconds)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: its whole process group."""
    with suppress(ProcessLookupError):  # it has ended with all of its group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def print_report(
    backends: Sequence[str], outcomes: Sequence[Outcome], card: str, peak: float | None, seconds: float
) -> None:
    """Print the table of the results so far, then the failed steps and the times of the installations."""
    found = {outcome.step: outcome for outcome in outcomes if outcome.values and not outcome.error}
    machine = next(
        (outcome.values["machine"] for outcome in found.values() if "machine" in outcome.values), ""
    )
    place = card or "no GPU: a trial on the CPU, whose figures say nothing about a GPU"
    print(f"Measured on {place}; {machine}. {seconds / 60:.1f} minutes in all.\n")
    print(
        table_head(
            *("step", "backend", "photos", "photos/s", "of the bf16 peak", "limited by", "GPU GB", "host GB"),
            *("CPU photos/s", "times the CPU", "equals the CPU"),
        )
    )
    for backend in backends:
        for name in MEASURED:
            step, on_cpu = Step(name, backend), Step(name, backend, CPU)
            print(step_row(step, found.get(step), found.get(on_cpu), peak))
    print("\nphotos/s of features: after the first batch. Of fine-tuning: of the last epoch.\n")
    for outcome in outcomes:
        if outcome.error:
            print(f"- {outcome.step.title}: not measured, {outcome.error}")
        elif outcome.step.name == "install":
            print(f"- {outcome.step.title}: {outcome.seconds:.0f} s")
        elif "rates" in outcome.values:
            print(f"- {outcome.step.title}: {describe_rates(outcome.values)}")
    if card and peak is None:
        print("- The script has no bf16 peak of this card; give --peak-tflops from its data sheet.")
    sys.stdout.flush()


def step_row(step: Step, gpu: Outcome | None, cpu: Outcome | None, peak: float | None) -> str:
    values: Mapping[str, Any] = gpu.values if gpu else {}
    cpu_values: Mapping[str, Any] = cpu.values if cpu else {}
    rate, cpu_rate = values.get("photos_per_s"), cpu_values.get("photos_per_s")
    flops = values.get("flops_per_s")
    share = flops / (peak * 1e12 * values["devices"]) if flops and peak else None
    return table_row(
        step.name,
        step.backend,
        format_number(values.get("photos"), ",d"),
        format_number(rate, ",.1f"),
        format_number(share, ".1%"),
        slower_part(values["rates"]) if "rates" in values else "not measured",
        format_number(values.get("gpu_gb"), ".1f"),
        format_number(values.get("host_gb"), ".1f"),
        format_number(cpu_rate, ",.1f"),
        format_number(rate / cpu_rate if rate and cpu_rate else None, ".1f"),
        equality(values, cpu_values),
    )


def slower_part(rates: Mapping[str, float]) -> str:
    """The part of the extraction that is slower alone: decoding or computing."""
    return min(rates, key=lambda part: rates[part])


def describe_rates(values: Mapping[str, Any]) -> str:
    """The rates of the parts alone, the share of the slower one that both together reach, and the start."""
    rates = values["rates"]
    parts = ", ".join(f"{part} alone {rate:,.1f} photos/s" for part, rate in rates.items())
    share = values["photos_per_s"] / rates[slower_part(rates)]
    whole = f"{values['seconds']:.0f} s with the compilation"
    return f"{parts}; together {share:.0%} of the slower part's rate; {whole}"


def format_number(value: float | None, style: str) -> str:
    return "not measured" if value is None else format(value, style)


def equality(gpu: Mapping[str, Any], cpu: Mapping[str, Any]) -> str:
    """Whether the CPU's results for the compared photos equal those of the GPU, with the figure."""
    if not gpu or not cpu or "compared" not in cpu:
        return "not measured"
    compared = cpu["compared"]
    if "features_error" in compared:
        error = compared["features_error"]
        return f"{'yes' if error <= SAME_FEATURES else 'no'}: features differ by at most {error:.2%}"
    same, photos = compared["same_labels"], compared["photos"]
    verdict = "yes" if same >= SAME_LABELS * photos else "no"
    return f"{verdict}: the same label for {same} of {photos} photos"


if __name__ == "__main__":
    sys.exit(main())
