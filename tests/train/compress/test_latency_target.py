"""--target-ms, with another board's table or estimate, and with the worker that measures on this machine."""

from __future__ import annotations

import csv
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.common.errors import UserError
from runtime.inference.engines import engine_name
from tests.helpers import ROOT
from tests.train.compress.test_allocation import EQUAL
from train.compress import latency_target
from train.compress.allocation import VGG16, NetworkShape, PruningCosts, choose_shape
from train.compress.config import CompressSettings
from train.compress.latency_table import (
    BOARDS,
    LatencyTable,
    estimated_latency_table,
    read_latency_table,
)
from train.compress.latency_target import largest_shape_within, latency_worker
from train.network.vgg import CONVOLUTIONS

choose = partial(choose_shape, PruningCosts(EQUAL, {224: 0.0, 160: 0.1}), VGG16)
TABLE = LatencyTable((1.0, 15.35), (40.0, 600.0))
SHAPE = NetworkShape(64, dict.fromkeys(CONVOLUTIONS, 8))


def test_a_latency_table_has_the_rows_of_one_engine_in_rising_order(tmp_path: Path) -> None:
    table = tmp_path / "board.csv"
    table.write_text(
        "\ufeffengine,gmacs,ms\nlitert 2.3.0,15.35,900\nlitert 2.3.0,1.5,110\nonnx 1.32.0,1.5,90\n"
    )
    assert read_latency_table(table, "litert") == LatencyTable((1.5, 15.35), (110.0, 900.0))
    assert read_latency_table(table, "litert").estimate(750_000_000) == pytest.approx(55)
    assert LatencyTable((0.5, 1.5), (15.0, 40.0)).estimate(3_000_000_000) == pytest.approx(80), (
        "in proportion"
    )


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("engine,ms\nlitert,3\n", "gmacs"),
        ("engine,gmacs,ms\nonnx,1,3\n", "litert"),
        ("engine,gmacs,ms\nlitert,1,-3\n", "litert"),
        ("engine,gmacs,ms\nlitert,1,nan\n", "litert"),
        ("engine;gmacs;ms\nlitert;1;3\n", "columns must be engine, gmacs, ms"),
        (f"engine,gmacs,ms\nlitert,1,{200_000 * '3'}\n", "field larger than field limit"),
        ("engine,gmacs,ms\nlitert,0.38,9.7\nlitert,0.5,4.4\n", "0.5 GMAC 4.4 ms; give rows of one kind"),
        ("engine,gmacs,ms\nlitert,1.53,9\nlitert,1.53,20\n", "with one number of threads"),
    ],
)
def test_an_unusable_latency_table_raises_an_error_with_its_path(
    text: str, fact: str, tmp_path: Path
) -> None:
    table = tmp_path / "board.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=fact) as error:
        read_latency_table(table, "litert")
    assert str(table) in str(error.value)


def test_latencies_that_vary_a_little_rise(tmp_path: Path) -> None:
    table = tmp_path / "board.csv"
    table.write_text("engine,gmacs,ms\nlitert,1,10\nlitert,1.1,9.5\nlitert,2,20\n")
    assert read_latency_table(table, "litert").ms == (10.0, 10.0, 20.0)


def test_the_largest_network_within_the_limit_is_chosen() -> None:
    shape = largest_shape_within(
        CompressSettings(target_ms=100.0), choose, lambda shape: TABLE.estimate(shape.macs)
    )
    assert TABLE.estimate(shape.macs) <= 100
    assert shape.macs > VGG16.macs / 8, "a reduction by 6 is enough"


def test_a_compressed_network_is_reduced_further_than_it_is() -> None:
    tried = []

    def remember(reduction: float) -> NetworkShape:
        tried.append(reduction)
        return choose(reduction)

    settings = CompressSettings(target_ms=1000.0)
    largest_shape_within(settings, remember, lambda shape: TABLE.estimate(shape.macs), above=10.0)
    assert min(tried) == 12


def test_a_limit_that_no_network_meets_raises_an_error_with_the_lowest_latency() -> None:
    settings = CompressSettings(target_ms=1.0)
    with pytest.raises(UserError, match=r"--target-ms 1: 64 times .* ms in litert"):
        largest_shape_within(settings, choose, lambda shape: TABLE.estimate(shape.macs))


def test_the_estimates_of_the_boards_are_the_slow_ends_of_the_recorded_table() -> None:
    with (ROOT / "benchmarks" / "boards.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["release"] == "flowers"]
    assert {row["board"] for row in rows} == set(BOARDS)
    for row in rows:
        engine = engine_name(row["engine"])
        recorded = float(row["four_threads_ms_at_most"]) / float(row["gmacs"])
        assert BOARDS[row["board"]].ms_per_gmac[engine] == pytest.approx(recorded, rel=0.005)


def test_a_board_has_an_estimate_in_proportion_to_the_macs() -> None:
    table = estimated_latency_table("pi4", "onnx")
    rate = BOARDS["pi4"].ms_per_gmac["onnx"]
    for macs in (10**9, VGG16.macs):
        assert table.estimate(macs) == pytest.approx(rate * macs / 1e9)
    with pytest.raises(UserError, match=r"--board pi4: .* openvino; .*--latency-table"):
        estimated_latency_table("pi4", "openvino")


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces the code of `python -m export.latency` in the process that latency_worker starts."""
    popen = subprocess.Popen

    def replace(code: str, ends_at_once: bool = False) -> None:
        def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
            assert command == [sys.executable, "-m", "export.latency"]
            process = popen([sys.executable, "-c", code], **options)
            if ends_at_once:
                process.wait()
            return process

        monkeypatch.setattr(latency_target.subprocess, "Popen", start)

    return replace


def test_the_worker_gets_a_json_line_for_each_shape_and_starts_once(fake_worker: Any) -> None:
    fake_worker(
        "import json, sys\n"
        "for count, line in enumerate(sys.stdin, 1):\n"
        "    request = json.loads(line)\n"
        "    assert request['engine'] == 'onnx' and request['classes'] == 5\n"
        "    ms = count * request['size'] + request['widths']['block1_conv1']\n"
        "    print(json.dumps({'ms': ms}), flush=True)\n"
    )
    with latency_worker(5, "onnx") as measure:
        assert [measure(SHAPE), measure(SHAPE)] == [64 + 8, 2 * 64 + 8]


@pytest.mark.parametrize(
    ("code", "facts"),
    [
        ("""input(); print('{"error": "litert stopped with status 1"}')""", ["litert stopped with status 1"]),
        ("import no_such_package", ["no_such_package", "pip install"]),
        ("input()", ["export.latency"]),
    ],
)
def test_an_error_of_the_worker_becomes_one_line(code: str, facts: list[str], fake_worker: Any) -> None:
    fake_worker(code)
    with latency_worker(5, "litert") as measure, pytest.raises(UserError) as error:
        measure(SHAPE)
    assert all(fact in str(error.value) for fact in ["--target-ms", *facts])
    assert "\n" not in str(error.value)


def test_a_worker_that_ends_before_the_request_is_one_line_too(fake_worker: Any) -> None:
    fake_worker("raise SystemExit('tensorflow is damaged')", ends_at_once=True)
    with (
        pytest.raises(UserError, match=r"--target-ms: .*tensorflow is damaged"),
        latency_worker(5, "litert") as measure,
    ):
        measure(SHAPE)
