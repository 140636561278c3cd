"""`python -m runtime.bench`, on a model so small that starting the engines takes the time."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from runtime import bench
from runtime.bench import main
from runtime.benchmark import runner
from runtime.benchmark.report import BenchRow
from runtime.benchmark.runner import BenchResults, run_benchmark, thread_counts
from runtime.inference.engine_cache import EngineSelection, load_selection
from runtime.inference.engines import default_threads, engine_version
from runtime.model_file.index import INDEX_NAME, read_index
from runtime.model_file.loader import KEY_VARIABLE, open_model
from tests.helpers import PATIENCE, start_python
from tests.runtime.conftest import HAS_TFLITE, rewrite_index

FILES = (("tflite", "float32"), ("onnx", "float32"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "ROUNDS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "thread_counts", lambda cores: [1])


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return make_folder(tmp_path / "colours", *FILES)


def auto_choice(path: Path) -> list[str]:
    """The engine, threads, sha256 and reason of --engine auto, in a process that may load any engine."""
    code = (
        "import sys; from runtime import Classifier; c = Classifier(sys.argv[1]); "
        "print(c.session.engine, c.threads, c.model.sha256, c.engine_reason, sep='\\n')"
    )
    run = [sys.executable, "-c", code, str(path)]
    return subprocess.run(run, capture_output=True, check=True, text=True).stdout.splitlines()


def test_every_file_engine_and_thread_count_is_measured_and_the_fastest_saved(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    board = tmp_path / "board.csv"
    assert main(["--model", str(folder), "--runs", "6", "--csv", str(board), "--save"]) == 0
    out, err = capsys.readouterr()
    with board.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(BenchRow)]
    assert {(row["file"], row["engine"], int(row["threads"])) for row in rows} == {
        (f"colours_float32.{format}", f"{engine} {engine_version(engine)}", threads)
        for format, engine in (
            ("tflite", "litert"),
            *((("tflite", "tflite"),) if HAS_TFLITE else ()),
            ("onnx", "onnx"),
            ("onnx", "openvino"),
        )
        for threads in thread_counts(default_threads())
    }
    sha256s = {file.file: file.sha256 for file in read_index(folder).files}
    for row in rows:
        assert row["sha256"] == sha256s[row["file"]] and row["n"] == "6" and row["model"] == "colours"
        assert 0 < float(row["median_ms"]) <= float(row["p95_ms"]) and float(row["load_ms"]) > 0
        assert 10 < float(row["peak_mb"]) < 1000 and int(row["cores"]) == default_threads() and row["cpu"]
    medians = [float(row["median_ms"]) for row in rows]
    assert medians == sorted(medians)
    assert rows[0]["file"] in out.splitlines()[-1] and rows[0]["engine"] in out.splitlines()[-1]
    assert "round 1 of 1" in err and "Traceback" not in err

    assert auto_choice(folder)[:3] == [rows[0]["engine"], rows[0]["threads"], rows[0]["sha256"]]
    name, sha256 = next(item for item in sha256s.items() if item[1] != rows[0]["sha256"])
    fastest = next(row for row in rows if row["sha256"] == sha256)  # of a file that --model names
    choice = auto_choice(folder / name)
    assert choice[:3] == [fastest["engine"], fastest["threads"], sha256] and "measured 20" in choice[3]


@pytest.mark.parametrize(("precision", "chosen"), [("int8", "int8"), ("float16", "full_int8")])
def test_a_full_int8_file_is_saved_for_the_model_only_without_an_int8_file(
    folder: Path,
    precision: str,
    chosen: str,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    names = {"tflite": precision, "onnx": "full_int8"}
    rewrite_index(
        folder, lambda index: [file.update(precision=names[file["format"]]) for file in index["files"]]
    )

    def full_int8_is_fastest(*arguments: Any) -> Iterator[BenchResults]:
        for results in run_benchmark(*arguments):
            yield replace(
                results, rows=tuple(sorted(results.rows, key=lambda row: row.precision != "full_int8"))
            )

    monkeypatch.setattr(bench, "run_benchmark", full_int8_is_fastest)
    assert main(["--model", str(folder), "--runs", "1", "--save"]) == 0
    saved = capsys.readouterr().out.splitlines()[-1]
    assert ("less exact" in saved) == (chosen == "int8")
    files = {file.precision: file for file in read_index(folder).files}
    for group, sha256 in (
        (tuple(files.values()), files[chosen].sha256),
        ((files["full_int8"],), files["full_int8"].sha256),  # --model names it
    ):
        selection = load_selection(group)
        assert isinstance(selection, EngineSelection) and selection.sha256 == sha256


def test_rounds_add_up_to_the_runs(folder: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROUNDS", 2)
    rounds = list(run_benchmark([open_model(folder, ["onnx"])], runs=6))
    assert [results.rows[0].n for results in rounds] == [3, 6] and not rounds[-1].failed


def test_a_file_without_its_index_is_measured_but_not_saved(
    folder: Path, tmp_path: Path, one_thread: None, capsys: Capture
) -> None:
    lone = folder / "colours_float32.onnx"
    (folder / INDEX_NAME).unlink()
    assert main(["--model", str(lone), "--runs", "1"]) == 0
    assert not (tmp_path / "cache" / "vgg-edge").exists()
    assert "--save" not in capsys.readouterr().out  # the next step would fail:
    assert main(["--model", str(lone), "--save"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {lone}: ") and "model.json" in line


def test_without_save_nothing_is_stored_and_the_next_step_names_it(
    folder: Path, tmp_path: Path, one_thread: None, capsys: Capture
) -> None:
    assert main(["--model", str(folder), "--runs", "1"]) == 0
    assert "--save" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "cache" / "vgg-edge").exists()


def test_a_file_that_an_engine_cannot_run_exits_1_and_the_other_files_are_measured(
    folder: Path, one_thread: None, capsys: Capture
) -> None:
    import onnx

    path = folder / "colours_float32.onnx"
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nonsense"
    path.write_bytes(model.SerializeToString())

    def correct(index: dict[str, Any]) -> None:
        (listed,) = (file for file in index["files"] if file["format"] == "onnx")
        listed |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    rewrite_index(folder, correct)
    assert main(["--model", str(folder), "--runs", "1", "--save"]) == 1
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    engines = ("onnx", "openvino")  # that read this file
    assert len(errors) == len(engines)
    for engine in engines:
        assert any(f"colours_float32.onnx in {engine} on 1 thread: " in error for error in errors)
    assert ".onnx" not in out and "colours_float32.tflite" in out.splitlines()[-1]


def test_the_csv_file_is_written_also_when_the_cache_cannot_be(
    folder: Path, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    board = tmp_path / "board.csv"
    assert main(["--model", str(folder), "--runs", "2", "--csv", str(board), "--save"]) == 2
    assert "XDG_CACHE_HOME" in capsys.readouterr().err and len(board.read_text().splitlines()) > 1


def test_the_workers_import_nothing_from_the_current_folder(
    folder: Path, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console script does not import from there either."""
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("raise SystemExit('another program')")
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(folder), "--runs", "1"]) == 0


def test_a_file_replaced_during_the_benchmark_is_not_counted(
    folder: Path, make_folder: Callable[..., Path], one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ROUNDS", 2)
    rounds = run_benchmark([open_model(folder, ["onnx"])], runs=2)
    assert next(rounds).failed == {}
    folder.rename(folder.with_name("old"))
    make_folder(folder, *FILES, labels=("blue", "green", "red"))
    results = next(rounds)
    assert results.rows == () and all("replaced" in reason for reason in results.failed.values())
    assert results.failed


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--model", "nowhere"], "no such file or folder"),
        (["--csv", "nowhere/board.csv"], "nowhere/board.csv"),
        (["--csv", "/dev/null"], "/dev/null: is not a file"),
        (["--runs", "0"], "--runs"),
        (["--seconds", "nan"], "--seconds"),
        (["--key", "nowhere.pub"], "nowhere.pub: "),
    ],
)
def test_a_usage_error_exits_2_and_names_the_flag_or_path(
    arguments: list[str], fact: str, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "set")  # --key sets it: for this test alone
    monkeypatch.delenv(KEY_VARIABLE)
    try:
        status = main([*(["--model", str(folder)] if "--model" not in arguments else []), *arguments])
    except SystemExit as exit:  # argparse's own
        status = int(str(exit.code))
    assert status == 2 and fact in capsys.readouterr().err.splitlines()[-1]


def test_without_an_engine_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("runtime.inference.engines.find_spec", lambda name: None)
    assert main(["--model", str(folder)]) == 2
    assert "pip install '.[" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for left-over processes in /proc")
def test_ctrl_c_ends_the_command_and_its_worker_and_saves_nothing(folder: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    with start_python("-m", "runtime.bench", "--model", folder, "--csv", board, "--save") as process:
        assert process.stdout and process.stderr
        assert process.stderr.readline().startswith("round 1 of 5, colours_float32.")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and out == "" and err.startswith("stopped: ")
    assert not board.exists() and not (tmp_path / "cache" / "vgg-edge").exists()
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_readable(path)]
    assert not [line for line in running if b"benchmark.worker" in line and os.fsencode(folder) in line]


def is_readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:  # the process has ended
        return False


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_thread_counts_are_powers_of_two_and_all_cores(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts
