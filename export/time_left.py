"""Estimate how long an export takes, from measured costs per photo.

Stages differ much in cost: an int8 inference can be 8 times as fast as a float32 one. So the time left is the
sum over all tasks of (units left * seconds per unit), and each task's seconds per unit are measured while it
runs. Tasks that have not started use the cost that `Workload` expects, corrected by the tasks of their kind.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.parity.photo_counts import PhotoCounts
from export.parity.result import FileKey
from export.parity.runner import TIMED, file_engine_pairs, photo_parts
from train.progress import Progress, format_duration

# Costs of one photo relative to the Keras model, measured on x86 (docs/decisions.md). Others: 1.
ENGINE_COST = {
    ("litert", "dynamic"): 0.7,
    ("tflite", "dynamic"): 3.0,
    ("litert", "int8"): 0.7,
    ("tflite", "int8"): 2.0,
    ("litert", "full_int8"): 0.7,
    ("tflite", "full_int8"): 2.0,
    ("onnx", "int8"): 0.6,
    ("openvino", "int8"): 0.5,
}
CALIBRATED = ("int8", "full_int8")  # precisions that take longest to convert
QUANTIZE_COST = 10.0  # one calibration photo through all layers
CONVERT_SECONDS = 4.0  # one file, and as much again per CONVERT_PARAMETERS
CONVERT_PARAMETERS = 5_000_000

Key = tuple[str, ...]  # a task: its kind, then its file, recipe or engine, as the functions *_key make it


@dataclass(frozen=True)
class Task:
    """Units of work of equal cost."""

    units: int
    seconds: float  # expected wall-clock seconds per unit
    workers: int = 1  # such tasks that run at the same time
    measured: int | None = None  # units that are measured: those after may wait for other tasks


@dataclass(frozen=True)
class Workload:
    """The amount of work of an export, and the measured cost of one photo."""

    photo_seconds: float  # one photo through the Keras model
    parameters: int
    layers: int  # that are quantized
    recipe: str  # the first int8 recipe
    calibration: int  # photos
    validation: int  # photos that a recipe is compared on in the first engine of a format
    validation_others: int  # and in its other engines
    test: PhotoCounts
    engines: Sequence[str] | None  # None: all that are installed
    workers: int  # inferences that run at the same time
    full_recipe: str = ""  # of the full-int8 file

    def tasks(self, files: Iterable[FileKey]) -> dict[Key, Task]:
        """All tasks of an export, if the first int8 recipe is accepted."""
        files = list(files)
        tasks = {convert_key(file): self._conversion() for file in files if file.precision != "int8"}
        if any(precision == "full_int8" for _, precision in files):
            tasks |= self.quantize_tasks(self.full_recipe)
        if int8 := [format for format, precision in files if precision == "int8"]:
            tasks["validation reference",] = Task(self.validation, self.photo_seconds)
            tasks |= self.recipe_tasks(self.recipe, int8)
        tasks["test reference",] = Task(self.test.most, self.photo_seconds)
        for file, engine in file_engine_pairs(files, self.engines):
            photos = self.test.of(file.precision)
            tasks[parity_key(file, engine)] = self._inferences(engine, file.precision, photos)
        return tasks

    def recipe_tasks(self, recipe: str, formats: Iterable[str]) -> dict[Key, Task]:
        """Quantize with one recipe, convert, and compare on the validation photos."""
        tasks = self.quantize_tasks(recipe)
        for format in formats:
            tasks[convert_key(FileKey(format, "int8"), recipe)] = self._conversion()
            photos = self.validation
            for _, engine in file_engine_pairs([FileKey(format, "int8")], self.engines):
                task = self._inferences(engine, "int8", photos)
                tasks[validate_key(recipe, format, engine)] = task
                photos = self.validation_others
        return tasks

    def quantize_tasks(self, recipe: str) -> dict[Key, Task]:
        """Choose the codes of all layers with one recipe."""
        cost = QUANTIZE_COST * self.photo_seconds / self.layers
        return {quantize_key(recipe): Task(self.layers * self.calibration, cost)}

    def _conversion(self) -> Task:
        return Task(1, CONVERT_SECONDS * (1 + self.parameters / CONVERT_PARAMETERS))

    def _inferences(self, engine: str, precision: str, photos: int) -> Task:
        cost = ENGINE_COST.get((engine, precision), 1.0) * self.photo_seconds
        first_part = photo_parts(photos, self.workers)[0]  # the others may wait for other files
        return Task(photos + min(TIMED, photos), cost, self.workers, measured=len(first_part))


def convert_key(file: FileKey, recipe: str = "") -> Key:
    return "convert", *file, recipe


def quantize_key(recipe: str) -> Key:
    return "quantize", recipe


def validate_key(recipe: str, format: str, engine: str) -> Key:
    return "inference", "validation", recipe, format, engine


def parity_key(file: FileKey, engine: str) -> Key:
    return "inference", "test", *file, engine


class TimeLeft:
    """Counts finished units of each task and estimates the seconds left."""

    def __init__(self, tasks: Mapping[Key, Task], now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.tasks = dict(tasks)
        self.done = dict.fromkeys(tasks, 0)
        self.started: dict[Key, tuple[float, int]] = {}  # time and units of the first step
        self.unit_seconds: dict[Key, float] = {}

    def add(self, tasks: Mapping[Key, Task]) -> None:
        """Adds tasks that are not there yet."""
        for key, task in tasks.items():
            if key not in self.tasks:
                self.tasks[key], self.done[key] = task, 0

    def step(self, key: Key, units: int = 1) -> None:
        task, now = self.tasks[key], self.now()
        self.done[key] += units
        first, done_at_first = self.started.setdefault(key, (now, self.done[key]))
        measured = self.done[key] - done_at_first
        if measured and self.done[key] <= (task.measured or task.units):
            self.unit_seconds[key] = (now - first) / measured

    def finish(self, keys: Iterable[Key], seconds: float | None = None) -> None:
        """Marks tasks as done: a failed file leaves units undone. `seconds` is the cost of a single unit."""
        for key in keys:
            self.done[key] = self.tasks[key].units
            if seconds is not None:
                self.unit_seconds[key] = seconds

    def seconds(self) -> float:
        scale = {kind: self._scale(kind) for kind in {key[0] for key in self.tasks}}
        left = 0.0
        for key, task in self.tasks.items():
            unit = self.unit_seconds.get(key, task.seconds * scale[key[0]])
            left += (task.units - self.done[key]) * unit / task.workers
        return left

    def _scale(self, kind: str) -> float:
        """Measured by expected seconds, over the tasks of a kind that have been measured."""
        measured = [key for key in self.unit_seconds if key[0] == kind]
        expected = sum(self.tasks[key].seconds * self.done[key] for key in measured)
        return (
            sum(self.unit_seconds[key] * self.done[key] for key in measured) / expected if expected else 1.0
        )


class ExportClock:
    """Shows the progress of each stage, with the time left of the whole export."""

    def __init__(self, workload: Workload, tasks: Mapping[Key, Task]) -> None:
        self.workload = workload
        self.time_left = TimeLeft(tasks)

    @contextmanager
    def stage(self, title: str, unit: str, keys: Sequence[Key]) -> Iterator[Callable[[Key, int], None]]:
        """Yields the function to call with a task and a number of finished units."""
        total = sum(self.time_left.tasks[key].units for key in keys)
        with Progress(title, total, unit, left=self.text) as progress:

            def step(key: Key, units: int = 1) -> None:
                self.time_left.step(key, units)
                progress.step(units)

            yield step
        self.time_left.finish(keys)

    @contextmanager
    def conversion(self, file: FileKey, recipe: str = "") -> Iterator[None]:
        key, start = convert_key(file, recipe), time.monotonic()
        name = f"{file.format} {file.precision}" + (f", recipe {recipe}" if recipe else "")
        print(f"convert: {name} ({self.text()})", flush=True)
        yield
        self.time_left.finish([key], time.monotonic() - start)

    def text(self) -> str:
        return f"{format_estimate(self.time_left.seconds())} left in all"


def total_seconds(tasks: Mapping[Key, Task]) -> float:
    return TimeLeft(tasks).seconds()


def format_estimate(seconds: float) -> str:
    """Seconds rounded for a person: about 40 s, about 6 min, about 1 h 20 min."""
    if seconds < 55:
        return f"about {max(5 * round(seconds / 5), 5)} s"
    return f"about {format_duration(60 * round(seconds / 60))}"


def compression_hint(run: Path, macs: int) -> str:
    """The line that says how slow an uncompressed model is, and which command compresses it."""
    return (
        f"speed: this model computes {macs / 1e9:.2f} GMAC per photo and runs about 8 times slower than a "
        f"compressed model of {macs / 1e10:.2f} GMAC; to compress it: "
        f"python -m train.compress {shlex.quote(str(run))} --reduce 10"
    )
