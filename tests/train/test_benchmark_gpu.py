"""benchmarks/gpu.py prints what it measured, whatever ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from tests.helpers import PATIENCE, start_python, wait_for

# Takes the place of a Python environment: a step on the GPU has a result, fails, or does not end.
ENVIRONMENT = """#!/bin/sh
case "$3 $*" in
draw*) mkdir "$5/photos" ;;
features*"--device gpu"*)
  echo progress
  echo '{"photos": 2000, "photos_per_s": 1500.0, "seconds": 9, "flops_per_s": 2e14, "devices": 1,
"rates": {"decoding": 1600.0, "computing": 3000.0}, "gpu_gb": 12.5, "host_gb": 3.5}' | tr -d '\\n' ;;
features*) echo '{"photos_per_s": 15.0, "compared": {"photos": 40, "features_error": 0.0015}}' ;;
fine-tune*) echo first >&2; echo 'no kernel image is available' >&2; exit 1 ;;
article*"--device gpu"*) touch "$5/../waiting"; sleep 1000 ;;
article*) echo '{"photos_per_s": 100.0}' ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    file = tmp_path / "python"
    file.write_text(ENVIRONMENT)
    file.chmod(0o755)
    return file


def rows(table: str) -> dict[tuple[str, ...], list[str]]:
    """The cells of a Markdown table by step and backend."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines[1:]]
    return {(line[0], line[1]): line[2:] for line in cells}


def test_a_failed_step_and_one_over_its_limit_leave_the_results_of_the_others(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.LIMITS, "article", 2)
    monkeypatch.setattr(gpu, "name_of_card", lambda: "NVIDIA H100 80GB HBM3, 81559 MiB, 570.1")
    started = time.monotonic()
    assert gpu.main(["--python", str(environment), "--backends", "jax", "--work", str(tmp_path)]) == 1
    assert time.monotonic() - started < PATIENCE
    printed = capsys.readouterr().out
    found = rows(printed)
    assert found["features", "jax"] == [
        "2,000",
        "1,500.0",
        f"{2e14 / 989e12:.1%}",
        "decoding",
        "12.5",
        "3.5",
        "15.0",
        "100.0",
        "yes: features differ by at most 0.15%",
    ]
    assert "together 94%" in printed
    assert set(found["fine-tune", "jax"]) == {"not measured"}
    assert "fine-tune on the GPU, jax: not measured, failed: no kernel image is available" in printed
    assert "article on the GPU, jax: not measured, stopped after its limit of 2 s" in printed
    assert found["article", "jax"].count("100.0") == 1


def test_steps_do_not_start_when_the_time_is_over(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--device", "cpu", "--python", str(environment), "--work", str(tmp_path), "--minutes", "0"]
    assert gpu.main(command) == 1
    assert capsys.readouterr().out.count("not started: the time is over") == 14


@pytest.mark.slow
def test_a_failed_installation_skips_the_steps_of_its_backend_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setitem(gpu.PACKAGES, "jax", ("no-such-package",))
    monkeypatch.setitem(gpu.PACKAGES, "tensorflow", ("pip",))  # part of every new environment
    command = ["--device", "cpu", "--wheels", str(wheels), "--work", str(tmp_path)]
    monkeypatch.setattr(gpu, "MEASURED", ())
    assert gpu.main(command) == 1
    printed = capsys.readouterr().out
    assert "install, jax: not measured, failed: " in printed and "no-such-package" in printed
    assert "draw, jax: not measured, not started: no environment" in printed
    assert "install, tensorflow: not measured" not in printed


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_the_results_so_far_and_ends_the_step(
    environment: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--python", environment, "--work", tmp_path]
    process = start_python(*command)
    wait_for(lambda: (tmp_path / "waiting").exists())
    sleeping = subprocess.run(["pgrep", "-f", f"{environment} .*article"], capture_output=True, text=True)
    process.send_signal(ending)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert rows(out)["features", "tensorflow"][:2] == ["2,000", "1,500.0"]
    assert sleeping.stdout
    for process_id in sleeping.stdout.split():
        assert not Path("/proc", process_id).exists()


def test_results_that_differ_from_the_cpu_are_not_equal() -> None:
    result = {"photos_per_s": 1.0}
    for compared, equal in (
        ({"photos": 40, "features_error": 0.011}, False),
        ({"photos": 40, "features_error": 0.009}, True),
        ({"photos": 100, "same_labels": 97}, False),
        ({"photos": 100, "same_labels": 98}, True),
    ):
        assert gpu.equality(result, {"compared": compared}).startswith("yes") == equal


@pytest.mark.parametrize(
    ("card", "peak"), [("NVIDIA H200, 143771 MiB", 989), ("NVIDIA L4, 23034 MiB", 121), ("Tesla K80", None)]
)
def test_the_peak_of_a_card_is_that_of_its_data_sheet(card: str, peak: float | None) -> None:
    assert gpu.peak_of(card) == peak


@pytest.mark.slow
def test_every_step_measures_on_a_cpu(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.LIMITS, 600))  # for a busy machine
    command = ["--device", "cpu", "--python", sys.executable, "--backends", "tensorflow", "--photos", "150"]
    command += [
        "--compare",
        "50",
        "--weights",
        str(small_weights),
        "--work",
        str(tmp_path),
        "--minutes",
        "60",
    ]
    assert gpu.main(command) == 0
    printed = capsys.readouterr().out
    for step in gpu.MEASURED:
        photos, rate, *_, equal = rows(printed)[step, "tensorflow"]
        assert int(photos) in (150, 120) and float(rate.replace(",", "")) > 0
        assert equal.startswith("yes")
