"""The worker process measures what it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.benchmark import worker
from runtime.benchmark.worker import run_worker
from runtime.common.errors import EngineError
from runtime.inference.engines import ENGINES, engine_version
from runtime.model_file.index import read_index
from tests.runtime.conftest import EACH_ENGINE


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_a_worker_reports_its_engine_file_times_and_memory(engine: str, colours: Path) -> None:
    path = colours / f"colours_float32.{ENGINES[engine].format}"
    command = [sys.executable, "-m", "runtime.benchmark.worker", str(path), engine, "1", "7", "10"]
    result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    # The version that the package's source states is the version that the running engine states.
    assert result["engine"] == f"{engine} {engine_version(engine)}"
    assert result["sha256"] in {file.sha256 for file in read_index(colours).files}
    assert len(result["ms"]) == 7 and min(result["ms"]) > 0 and result["load_ms"] > 0
    assert 10 < result["peak_mb"] < 1000


def test_the_seconds_limit_the_runs(colours: Path) -> None:
    path = colours / "colours_float32.onnx"
    assert len(run_worker(path, "onnx", threads=1, runs=10**9, seconds=0.1).ms) > 1
    assert len(run_worker(path, "onnx", threads=1, runs=10**9, seconds=1e-9).ms) == 1


def test_an_engine_that_does_not_read_the_file_is_one_line(colours: Path) -> None:
    path = colours / "colours_float32.onnx"
    with pytest.raises(EngineError, match=r"litert .* onnx"):
        run_worker(path, "litert", threads=1, runs=1, seconds=1)
    command = [sys.executable, "-m", "runtime.benchmark.worker", str(path), "litert", "1", "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


def test_peak_memory_grows_by_an_array_and_stays() -> None:
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


def test_energy_is_the_sum_of_the_packages_and_their_counters_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a folder as Linux lays it out, so that the test needs no processor that reports its energy."""
    monkeypatch.setattr(worker, "POWERCAP", tmp_path)
    assert worker.energy_uj() == {} and worker.energy_used_mj({}, {}) is None
    domains = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "psys"}
    domains["intel-rapl:2"] = "package-1"
    for domain, name in domains.items():
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "name").write_text(f"{name}\n")
        (tmp_path / domain / "energy_uj").write_text("900000\n")
        (tmp_path / domain / "max_energy_range_uj").write_text("1000000\n")
    before = worker.energy_uj()
    assert sorted(path.name for path in before) == ["intel-rapl:0", "intel-rapl:2"]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("905000\n")
    (tmp_path / "intel-rapl:2" / "energy_uj").write_text("100000\n")
    assert worker.energy_used_mj(before, worker.energy_uj()) == pytest.approx(5 + 200)
    (tmp_path / "intel-rapl:2" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:2" / "energy_uj").mkdir()  # not readable, as for a user other than root
    assert worker.energy_uj() == {} and worker.energy_used_mj(before, worker.energy_uj()) is None
