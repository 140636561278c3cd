"""The time left is right when stages differ in cost, and follows measured costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.parity.photo_counts import PhotoCounts
from export.parity.result import FileKey
from export.parity.runner import TIMED
from export.time_left import ExportClock, Task, TimeLeft, Workload, format_estimate, total_seconds
from train import progress

SLOW, FAST = ("inference", "test", "float32"), ("inference", "test", "int8")
FILES = [
    FileKey("tflite", "float32"),
    FileKey("onnx", "float32"),
    FileKey("tflite", "int8"),
    FileKey("onnx", "int8"),
]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(left: TimeLeft, clock: Clock, key: tuple[str, ...], units: int, seconds: float) -> None:
    for _ in range(units):
        clock.seconds += seconds
        left.step(key)


def test_fast_tasks_do_not_inherit_the_rate_of_slow_tasks(clock: Clock) -> None:
    """100 inferences of 1 s and 100 of 0.1 s: after 50 s, a constant rate would predict 150 s."""
    left = TimeLeft({SLOW: Task(100, 1.0), FAST: Task(100, 0.1)}, clock)
    run(left, clock, SLOW, 50, 1.0)
    assert left.seconds() == pytest.approx(60)


def test_measured_costs_replace_expected_costs(clock: Clock) -> None:
    left = TimeLeft({SLOW: Task(100, 1.0), FAST: Task(100, 0.1)}, clock)
    run(left, clock, SLOW, 50, 3.0)
    assert left.seconds() == pytest.approx(50 * 3.0 + 100 * 0.3)  # the other task is scaled too
    run(left, clock, SLOW, 50, 3.0)
    run(left, clock, FAST, 50, 0.2)
    assert left.seconds() == pytest.approx(50 * 0.2)


def test_tasks_of_another_kind_are_not_scaled(clock: Clock) -> None:
    other = ("convert", "tflite", "float32", "")
    left = TimeLeft({SLOW: Task(100, 1.0), other: Task(1, 10.0)}, clock)
    run(left, clock, SLOW, 50, 3.0)
    assert left.seconds() == pytest.approx(50 * 3.0 + 10)


def test_a_pause_after_the_measured_units_does_not_count(clock: Clock) -> None:
    left = TimeLeft({SLOW: Task(60, 1.0, measured=50)}, clock)
    run(left, clock, SLOW, 50, 2.0)
    clock.seconds += 1000
    run(left, clock, SLOW, 1, 0.0)
    assert left.seconds() == pytest.approx(9 * 2.0)


def test_parallel_tasks_share_the_time(clock: Clock) -> None:
    assert TimeLeft({SLOW: Task(100, 1.0, workers=2)}, clock).seconds() == pytest.approx(50)


def test_a_finished_task_has_no_time_left(clock: Clock) -> None:
    left = TimeLeft({SLOW: Task(100, 1.0), FAST: Task(100, 0.1)}, clock)
    left.finish([SLOW])
    assert left.seconds() == pytest.approx(10)


def test_fewer_photos_and_fewer_engines_take_less_time() -> None:
    def seconds(test: int = 500, engines: tuple[str, ...] = ("litert", "onnx")) -> float:
        files = [file for file in FILES if file.format == "tflite" or "onnx" in engines]
        work = Workload(0.1, 15_000_000, 18, "gptq", 60, 200, 50, PhotoCounts(test, test), engines, 2)
        return total_seconds(work.tasks(files))

    assert seconds(test=50) < 0.7 * seconds()
    assert seconds(engines=("litert",)) < seconds()


def test_each_task_has_its_number_of_photos() -> None:
    work = Workload(0.1, 15_000_000, 18, "gptq", 60, 200, 50, PhotoCounts(250, 60), ("litert", "onnx"), 2)
    tasks = work.tasks(FILES)
    photos = {key: task.units - TIMED for key, task in tasks.items() if key[0] == "inference"}
    assert tasks["test reference",].units == 250
    assert photos["inference", "test", "tflite", "float32", "litert"] == 60
    assert photos["inference", "test", "onnx", "int8", "onnx"] == 250
    two = replace(work, engines=("litert", "tflite")).recipe_tasks("gptq", ["tflite"])
    assert two["inference", "validation", "gptq", "tflite", "litert"].units == 200 + TIMED
    assert two["inference", "validation", "gptq", "tflite", "tflite"].units == 50 + TIMED


def test_a_full_int8_file_takes_the_time_to_quantize_all_layers() -> None:
    work = Workload(
        0.1,
        15_000_000,
        18,
        "gptq",
        60,
        200,
        50,
        PhotoCounts(500, 500),
        ("litert",),
        2,
        full_recipe="all layers",
    )
    float32 = work.tasks([FileKey("tflite", "float32")])
    added = work.tasks([FileKey("tflite", "float32"), FileKey("tflite", "full_int8")]).keys() - float32.keys()
    assert {key[0] for key in added} == {"quantize", "convert", "inference"}
    assert ("quantize", "all layers") in added and ("validation reference",) not in added


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "5 s"), (42, "40 s"), (90, "2 min"), (768, "13 min"), (4800, "1 h 20 min")],
)
def test_a_duration_is_rounded_for_a_person(seconds: float, text: str) -> None:
    assert format_estimate(seconds) == f"about {text}"


def test_every_stage_shows_the_time_left_of_the_whole_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY", 0)
    work = Workload(0.1, 1_000_000, 18, "gptq", 60, 200, 50, PhotoCounts(500, 500), ("litert",), 2)
    tasks = {SLOW: Task(2, 1.0), FAST: Task(100, 1.2)}
    with ExportClock(work, tasks).stage("parity", "inferences", [SLOW]) as step:
        step(SLOW, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "parity: 1 of 2 inferences" in line and "about 2 min left in all" in line
