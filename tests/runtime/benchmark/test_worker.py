"""One measured process: what it counts is really so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.benchmark import worker as turn
from runtime.inference.engines import ENGINES, FORMATS_OF, engine_version
from runtime.model_file.index import read_index


def take(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.benchmark.worker", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_turn(engine: str, colours: Path) -> None:
    path = colours / f"colours_float32.{FORMATS_OF[engine]}"
    said = json.loads(take(path, engine, 1, 7, 10).stdout)
    # What the package's source says is the version that the running engine says.
    assert said["engine"] == f"{engine} {engine_version(engine)}"
    assert said["sha256"] in {file.sha256 for file in read_index(colours).files}
    assert len(said["ms"]) == 7 and min(said["ms"]) > 0 and said["load_ms"] > 0
    assert 10 < said["peak_mb"] < 1000


def test_time_bounds_it(colours: Path) -> None:
    path = colours / "colours_float32.onnx"
    assert len(json.loads(take(path, "onnx", 1, 10**9, 0.2).stdout)["ms"]) > 1
    assert len(json.loads(take(path, "onnx", 1, 10**9, 1e-9).stdout)["ms"]) == 1


def test_what_fails_is_said_in_one_line(colours: Path) -> None:
    done = take(colours / "colours_float32.onnx", "litert", 1, 1, 1)
    assert done.returncode == 1 and done.stdout == ""
    assert "litert runs tflite files, not onnx" in done.stderr and len(done.stderr.splitlines()) == 1


def test_peak_memory_grows_by_what_was_held() -> None:
    code = """
import numpy as np
from runtime.benchmark.worker import peak_mb
print(peak_mb())
print(np.ones(100_000_000, np.uint8).any() and peak_mb())
print(peak_mb())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    before, holding, after = map(float, done.stdout.split())
    assert before + 90 <= holding <= before + 120 and after >= holding


def test_energy_is_the_packages_and_their_counters_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as Linux lays it out; this needs no processor that reports its energy."""
    monkeypatch.setattr(turn, "POWERCAP", tmp_path)
    assert turn.energy_uj() == {} and turn.energy_used_mj({}, {}) is None
    domains = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "psys"}
    domains["intel-rapl:2"] = "package-1"
    for domain, name in domains.items():
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "name").write_text(f"{name}\n")
        (tmp_path / domain / "energy_uj").write_text("900000\n")
        (tmp_path / domain / "max_energy_range_uj").write_text("1000000\n")
    before = turn.energy_uj()
    assert sorted(path.name for path in before) == ["intel-rapl:0", "intel-rapl:2"]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("905000\n")
    (tmp_path / "intel-rapl:2" / "energy_uj").write_text("100000\n")
    assert turn.energy_used_mj(before, turn.energy_uj()) == pytest.approx(5 + 200)
    (tmp_path / "intel-rapl:2" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:2" / "energy_uj").mkdir()  # cannot be read, as by who is not root
    assert turn.energy_uj() == {} and turn.energy_used_mj(before, turn.energy_uj()) is None
