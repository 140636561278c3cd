"""The command, on a model so small that starting the engines is what takes the time."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from runtime import bench
from runtime.bench import BenchRow, main, report, thread_counts
from runtime.inference.engines import default_threads, engine_version
from runtime.model_file.files import INDEX_NAME
from runtime.model_file.index import read_index
from runtime.model_file.loader import KEY_VARIABLE
from tests.helpers import ROOT

FILES = (("tflite", "float32"), ("onnx", "float32"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return make_folder(tmp_path / "colours", *FILES)


def test_every_file_engine_and_thread_count(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    board = tmp_path / "board.csv"
    assert main(["--model", str(folder), "--runs", "6", "--csv", str(board), "--save"]) == 0
    out, err = capsys.readouterr()
    with board.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(BenchRow)]
    by = {(row["file"], row["engine"], int(row["threads"])) for row in rows}
    assert by == {
        (f"colours_float32.{format}", f"{engine} {engine_version(engine)}", threads)
        for format, engine in (("tflite", "litert"), ("tflite", "tflite"), ("onnx", "onnx"))
        for threads in thread_counts(default_threads())
    }
    sha256s = {file.file: file.sha256 for file in read_index(folder).files}
    for row in rows:
        assert row["sha256"] == sha256s[row["file"]] and row["n"] == "6" and row["model"] == "colours"
        assert 0 < float(row["median_ms"]) <= float(row["p95_ms"]) and float(row["load_ms"]) > 0
        assert 10 < float(row["peak_mb"]) < 1000 and int(row["cores"]) == default_threads() and row["cpu"]
    medians = [float(row["median_ms"]) for row in rows]
    assert medians == sorted(medians)

    heading, _, columns, *lines = out.splitlines()
    assert heading.startswith("colours on ") and rows[0]["cpu"] in heading
    assert [line.endswith("fastest") for line in lines[: len(rows)]] == [True] + [False] * (len(rows) - 1)
    ends = {line.index(row["file"]) for line, row in zip(lines, rows, strict=False)}
    assert ends == {columns.index("file")}
    assert "round 1 of 2" in err and "Traceback" not in err

    assert auto(folder)[:3] == [rows[0]["engine"], rows[0]["threads"], rows[0]["sha256"]]
    assert ", measured 20" in auto(folder)[3]
    for name, sha256 in sha256s.items():  # and each file, for those who name one
        own = next(row for row in rows if row["sha256"] == sha256)
        assert auto(folder / name)[:3] == [own["engine"], own["threads"], sha256]


def auto(path: Path) -> list[str]:
    """Engine, threads, sha256 and why, in a process of its own, where any engine may turn out the fastest."""
    code = (
        "import sys; from runtime import Classifier; c = Classifier(sys.argv[1]); "
        "print(c.session.engine, c.threads, c.model.sha256, c.engine_reason, sep='\\n')"
    )
    run = [sys.executable, "-c", code, str(path)]
    return subprocess.run(run, capture_output=True, check=True, text=True).stdout.splitlines()


def test_without_save_nothing_is_kept(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    lone = folder / "colours_float32.onnx"
    (folder / INDEX_NAME).unlink()
    assert main(["--model", str(lone), "--runs", "1"]) == 0
    assert not (tmp_path / "cache" / "vgg-edge").exists()
    assert "--save" not in capsys.readouterr().out  # which would say:
    assert main(["--model", str(lone), "--save"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {lone}: --save needs the model.json that an export wrote beside it"


def test_a_file_that_no_engine_runs_is_told_and_the_rest_measured(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    import hashlib
    import json

    import onnx

    path = folder / "colours_float32.onnx"
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nonsense"
    path.write_bytes(model.SerializeToString())
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    (listed,) = (file for file in index["files"] if file["format"] == "onnx")
    listed |= {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    assert main(["--model", str(folder), "--runs", "1", "--save"]) == 1
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == len(thread_counts(default_threads()))
    assert all("colours_float32.onnx in onnx, " in line and "cannot load it" in line for line in told)
    assert ".onnx" not in out and "saved: --engine auto takes colours_float32.tflite" in out


def test_a_file_replaced_meanwhile_is_not_counted(
    folder: Path, make_folder: Callable[..., Path], capsys: Capture
) -> None:
    model = bench.open_model(folder, ["onnx"])
    rounds = bench.run_bench([model], runs=2)
    assert next(rounds)[1] == {}
    folder.rename(folder.with_name("old"))
    make_folder(folder, *FILES, labels=("blue", "green", "red"))
    rows, failed = next(rounds)
    assert rows == [] and set(failed.values()) == {"the file was replaced meanwhile: measure again"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "nowhere"], "no such file or folder"),
        (["--csv", "nowhere/board.csv"], "no such folder; make it first"),
        (["--runs", "0"], "--runs"),
        (["--seconds", "nan"], "--seconds"),
        (["--key", "nowhere.pub"], "nowhere.pub: "),
    ],
)
def test_usage_exits_2(
    arguments: list[str], reason: str, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "")  # --key sets it: for this test alone
    try:
        status = main([*(["--model", str(folder)] if "--model" not in arguments else []), *arguments])
    except SystemExit as exit:  # argparse's own
        status = int(str(exit.code))
    assert status == 2 and reason in capsys.readouterr().err.splitlines()[-1]


def test_no_engine_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("runtime.inference.engines.find_spec", lambda name: None)
    assert main(["--model", str(folder)]) == 2
    assert "is installed: pip install 'vgg-edge[" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for left-over processes in /proc")
def test_ctrl_c_ends_it_and_its_process(folder: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    command = [sys.executable, "-m", "runtime.bench", "--model", str(folder), "--csv", str(board), "--save"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        assert process.stderr.readline().startswith("round 1 of 5, colours_float32.")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out, err) == ("", "stopped: nothing was written or saved\n") and process.returncode == 130
    assert not board.exists() and not (tmp_path / "cache" / "vgg-edge").exists()
    there = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not [line for line in there if b"runtime.benchmark.worker" in line and os.fsencode(folder) in line]


def readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:  # has ended
        return False


def a_row(**changes: object) -> BenchRow:
    empty: dict[str, object] = dict.fromkeys(field.name for field in fields(BenchRow))
    figures = {"cores": 2, "threads": 1, "n": 9, "median_ms": 2.0, "p95_ms": 3.0, "load_ms": 50.0}
    names = {"model": "colours", "file": "colours.onnx", "engine": "onnx 1"}
    return BenchRow(**{**empty, **figures, **names, **changes})  # type: ignore[arg-type]


def test_energy_has_a_column_where_it_is_reported() -> None:
    assert "mJ" not in report([a_row()]) and report([a_row()]).endswith("\nenergy: not reported here")
    *_, head, line = report([a_row(energy_mj=12.34)]).splitlines()
    assert head.split()[-1] == "mJ" and line.split()[-2:] == ["12.3", "fastest"]


def test_columns_align_whatever_a_file_is_called() -> None:
    first, second = report([a_row(file="花花.onnx"), a_row(file="a\x1b[2J.onnx")]).splitlines()[3:5]
    assert first.index("onnx 1") + 2 == second.index("onnx 1")  # two signs of two columns each
    assert "\x1b" not in second


def test_thread_counts() -> None:
    assert [thread_counts(cores) for cores in (1, 2, 4, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]
