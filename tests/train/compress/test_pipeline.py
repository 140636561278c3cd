"""`python -m train.compress` on a small run of generated pictures."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.common.file_lock import exclusive_lock
from tests.conftest import QUICK
from tests.train.compress.test_allocation import EQUAL
from train.compress import pipeline
from train.compress.__main__ import main, parse_arguments
from train.compress.allocation import VGG16, NetworkShape, PruningCosts
from train.compress.config import CompressConfig, CompressSettings
from train.compress.latency_table import estimated_latency_table
from train.compress.pipeline import find_shape
from train.compress.teacher import Teacher
from train.network.vgg import CONVOLUTIONS
from train.run import UNCOMPRESSED_CSV, RunError, open_run
from train.trainer import CheckpointCallback


def test_a_compressed_run_has_the_same_photos_and_fewer_multiplications(
    compressed_run: Path, synthetic_run: Path
) -> None:
    run, original = open_run(compressed_run), open_run(synthetic_run)
    assert run.dataset.photos == original.dataset.photos and run.classes == original.classes
    model, before = run.load_model(), original.load_model()
    widths, widths_before = (
        {name: network.get_layer(name).filters for name in CONVOLUTIONS} for network in (model, before)
    )
    record = run.compressed
    assert record["from"] == original.name and record["widths"] == widths
    shape = NetworkShape(record["size"], widths)
    assert model.inputs[0].shape == (None, shape.size, shape.size, 3) and model.inputs[0].dtype == "uint8"
    assert record["of_macs"] == NetworkShape(before.inputs[0].shape[1], widths_before).macs
    assert record["macs"] == shape.macs <= record["of_macs"] / record["reduce"]
    assert widths["block5_conv1"] < widths_before["block5_conv1"]


def test_a_compressed_run_is_complete(compressed_run: Path) -> None:
    assert not compressed_run.with_name(f".{compressed_run.name}.resume").exists()
    with (compressed_run / "history.csv").open() as file:
        assert {row["stage"] for row in csv.DictReader(file)} == {"head", "distill"}
    assert "compressed from" in (compressed_run / "report.html").read_text(encoding="utf-8")


def test_a_compressed_run_records_the_labels_of_the_uncompressed_model(
    compressed_run: Path, synthetic_run: Path, tmp_path: Path
) -> None:
    run, original = open_run(compressed_run), open_run(synthetic_run)
    labels = run.uncompressed_labels()
    assert original.uncompressed_labels() == {}
    photos = [*run.dataset.split("val"), *run.dataset.split("test")]
    assert sorted(labels) == sorted(photo.path for photo in photos)
    for split in ("val", "test"):
        correct = [labels[photo.path] == photo.label for photo in run.dataset.split(split)]
        assert np.mean(correct) == pytest.approx(original.metrics[split]["top1"])
        assert run.compressed["uncompressed_top1"][split] == pytest.approx(np.mean(correct))
    incomplete = tmp_path / "incomplete"
    shutil.copytree(run.path, incomplete)
    (incomplete / UNCOMPRESSED_CSV).unlink()
    with pytest.raises(RunError, match=UNCOMPRESSED_CSV):
        open_run(incomplete).uncompressed_labels()


def test_a_compressed_run_can_be_compressed_again(
    compressed_run: Path, synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "smaller"
    cache = ["--cache", str(tmp_path / "cache")]
    command = [str(compressed_run), "--out", str(out), *cache, *QUICK[:-1]]
    assert main([*command, "2"]) == 2  # the reduction of the run
    assert "already needs" in capsys.readouterr().err
    assert main([*command, "4"]) == 0
    first, second, original = (open_run(run) for run in (compressed_run, out, synthetic_run))
    record = second.compressed
    assert (record["from"], record["through"]) == (original.name, first.name)
    assert record["of_macs"] == first.compressed["of_macs"] and record["macs"] <= record["of_macs"] / 4
    assert record["of_size"] == first.compressed["of_size"]
    # The export compares it with the uncompressed model too.
    assert second.uncompressed_labels() == first.uncompressed_labels()
    assert record["uncompressed_top1"] == first.compressed["uncompressed_top1"]
    (copy := tmp_path / "copy").mkdir()
    shutil.copytree(compressed_run, copy, dirs_exist_ok=True)
    rows = (copy / UNCOMPRESSED_CSV).read_text().splitlines()
    (copy / UNCOMPRESSED_CSV).write_text("\n".join(rows[:2]))
    assert main([str(copy), "--out", str(tmp_path / "never"), *cache, *QUICK[:-1], "4"]) == 2
    assert f"{UNCOMPRESSED_CSV} lacks" in capsys.readouterr().err


def test_an_interrupted_command_resumes_and_gives_the_same_network(
    compressed_run: Path,
    synthetic_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / compressed_run.name
    command = [str(synthetic_run), "--out", str(out), "--resume", *QUICK]
    calls: list[str] = []

    def fail_after_first_call(name: str) -> None:
        function: Callable[..., Any] = getattr(pipeline, name)

        def call_and_fail(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            calls.append(name)
            if calls.count(name) == 1:
                raise MemoryError(name)
            return result

        monkeypatch.setattr(pipeline, name, call_and_fail)

    # The first failure comes after the shape is stored, the second after the tensors and the head are.
    for name in ("print_shape", "train_student_head"):
        fail_after_first_call(name)
    for name in ("measure_costs", "reconstruct"):
        function = getattr(pipeline, name)
        monkeypatch.setattr(
            pipeline, name, lambda *given, name=name, run=function: calls.append(name) or run(*given)
        )
    for _ in range(2):
        with pytest.raises(MemoryError):
            main(command)
        assert not out.exists()
    with monkeypatch.context() as patch:
        interrupt_after_first_epoch_of_distillation(patch)
        assert main(command) == 130
    assert "--resume" in capsys.readouterr().out and open_run(out).compressed["epochs"] == 2
    assert main(command) == 0
    assert calls.count("measure_costs") == 1 and calls.count("reconstruct") == 1
    resumed, expected = open_run(out), open_run(compressed_run)
    assert resumed.metrics == expected.metrics
    for one, other in zip(
        resumed.load_model().get_weights(), expected.load_model().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_neither_an_interrupted_nor_a_second_command_replaces_a_finished_run(
    compressed_run: Path,
    synthetic_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(compressed_run, tmp_path / "done")
    before = (out / "run.json").read_bytes()
    command = [str(synthetic_run), "--out", str(out), "--overwrite", *QUICK]
    with exclusive_lock(tmp_path / ".done.lock"):
        assert main(command) == 2
    assert "another command is writing it" in capsys.readouterr().err
    interrupt_after_first_epoch_of_distillation(monkeypatch)
    assert main(command) == 130
    assert "is unchanged" in capsys.readouterr().out and (out / "run.json").read_bytes() == before


def interrupt_after_first_epoch_of_distillation(patch: pytest.MonkeyPatch) -> None:
    end = CheckpointCallback.on_epoch_end

    def interrupt(self: CheckpointCallback, epoch: int, logs: Any = None) -> None:
        end(self, epoch, logs)
        if self.stage.name == "distill":
            raise KeyboardInterrupt

    patch.setattr(CheckpointCallback, "on_epoch_end", interrupt)


def test_missing_or_changed_photos_end_with_exit_code_2(
    synthetic_run: Path, synthetic_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(synthetic_photos, copy)
    first = open_run(synthetic_run).dataset.photos[0].path
    (copy / first).write_bytes(b"another picture")
    out = tmp_path / "out"
    command = [str(synthetic_run), "--photos-root", str(copy), "--out", str(out)]
    assert main(command) == 2
    assert str(copy / first) in capsys.readouterr().err
    shutil.rmtree(copy)
    assert main(command) == 2
    assert "--photos-root" in capsys.readouterr().err
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_no_other_folder_is_replaced(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main([str(synthetic_run), "--out", str(tmp_path), "--overwrite"]) == 2
    assert str(tmp_path) in capsys.readouterr().err and (tmp_path / "notes.txt").exists()
    assert main([str(synthetic_run), "--out", str(synthetic_run), "--overwrite"]) == 2
    assert "--out" in capsys.readouterr().err and (synthetic_run / "model.keras").exists()


def test_an_existing_run_is_continued_only_if_its_checkpoints_exist(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(synthetic_run, tmp_path / "small")
    command = [str(synthetic_run), "--out", str(out), "--resume", "--reduce", "5000"]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / ".small.resume").mkdir()
    assert main(command) == 2
    assert "--reduce" in capsys.readouterr().err, "the existing run is accepted, the reduction is not"


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--reduce", "5000"], ["64x64", "--reduce"]),
        (["--max-mb", "100"], ["already has about", "a lower limit"]),
        (["--size", "96"], ["--size 96", "64"]),
        (["--target-ms", "9", "--latency-table", "no.csv"], ["no.csv", "engine, gmacs, ms"]),
        (["--target-ms", "9", "--board", "pi4", "--engine", "tflite"], ["--board pi4", "tflite"]),
    ],
)
def test_settings_that_the_run_cannot_meet_are_refused_before_the_work(
    flags: list[str],
    facts: list[str],
    synthetic_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(synthetic_run), *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in facts)
    assert not list(tmp_path.iterdir())


def test_the_search_for_a_board_says_that_it_uses_an_estimate_and_how_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "measure_costs", lambda *_: PruningCosts(EQUAL, {224: 0.0}))
    settings = CompressSettings(target_ms=90.0, board="pi4", size=224)
    table = estimated_latency_table("pi4", settings.engine)
    inputs: Any = SimpleNamespace(run=SimpleNamespace(dataset=None, classes=("a", "b")), latency_table=table)
    teacher = Teacher(None, VGG16.macs, None, "block5_pool", {}, VGG16, ())
    assert table.estimate(find_shape(inputs, teacher, settings).macs) <= 90
    note, *search = capsys.readouterr().out.splitlines()
    assert all(fact in note for fact in ("Raspberry Pi 4", "estimate", "python -m runtime.bench"))
    assert search and all("Raspberry Pi 4 (estimate)" in line for line in search)


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--reduce", "1"], ["--reduce", "1"]),
        (["--reduce", "10", "--target-ms", "5"], ["--target-ms", "--reduce"]),
        (["--size", "100"], ["--size", "100", "32"]),
        (["--latency-table", "board.csv"], ["--latency-table", "--target-ms"]),
        (["--board", "pi4"], ["--board", "--target-ms"]),
        (["--target-ms", "9", "--board", "pi6"], ["--board", "pi6", "pi5"]),
        (
            ["--target-ms", "9", "--board", "pi4", "--latency-table", "board.csv"],
            ["--latency-table", "--board"],
        ),
        (["--views", "9"], ["--views", "8"]),
    ],
)
def test_invalid_flags_are_refused_with_their_limits(
    flags: list[str], facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["runs/any", *flags])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and all(fact in error for fact in facts)


def test_flags_become_one_config() -> None:
    assert parse_arguments(["runs/any"]) == CompressConfig(Path("runs/any"))
    flags = ["--reconstruction-photos", "20", "--target-ms", "5", "--latency-table", "board.csv"]
    settings = CompressSettings(reconstruction_photos=20, target_ms=5.0, latency_table="board.csv")
    assert parse_arguments(["runs/any", *flags]).settings == settings
