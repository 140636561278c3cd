"""The whole command on a compressed run of drawn flowers: every format, and every way to refuse.

The full VGG16 goes through every gate in tests/accuracy.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.__main__ import _check_readable, _contents, main
from export.parity.parity import file_engine_pairs
from runtime import Classifier
from runtime.common.errors import UserError
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME, MAX_JSON_BYTES
from runtime.model_file.index import Index, read_index
from runtime.model_file.loader import open_model
from tests.helpers import ROOT
from train.run import open_run

MADE = [
    ("tflite", "float32"),
    ("tflite", "float16"),
    ("tflite", "dynamic"),
    ("onnx", "float32"),
    ("onnx", "float16"),
    ("tflite", "int8"),
    ("onnx", "int8"),
]


@pytest.fixture(scope="session")
def exported(compressed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format of the compressed run, proven on all its test photos."""
    out = tmp_path_factory.mktemp("models") / "small"
    assert main([str(compressed_run), "--all", "--out", str(out)]) == 0
    return out


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_format_is_there_and_opens(exported: Path, compressed_run: Path) -> None:
    run = open_run(compressed_run)
    index = read_index(exported)
    assert {(file.format, file.precision) for file in index.files} == set(MADE)
    assert {path.name for path in exported.iterdir()} == {
        *(f"small_{precision}.{format}" for format, precision in MADE),
        INDEX_NAME,
        "README.md",
        "parity.csv",
    }
    assert index.contract.labels == run.classes
    assert index.contract.data_sha256 == run.data_sha256
    assert index.contract.synthetic
    for file in index.files:
        model = open_model(
            exported / file.file
        )  # checks its bytes, and that the contract inside is the index's
        assert model.contract == index.contract
        assert set(file.metrics["parity"]) and (file.precision != "int8" or file.metrics["recipe"])


def test_parity_is_proven_in_every_engine(exported: Path) -> None:
    with (exported / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    proven = {((row["format"], row["precision"]), row["engine"].split()[0]) for row in rows}
    assert proven == set(file_engine_pairs(MADE))
    assert {row["verdict"] for row in rows} == {"holds"}
    assert {row["n"] for row in rows} == {"5"}


def test_each_file_names_the_flowers_in_the_test_photos(exported: Path, compressed_run: Path) -> None:
    """The last step of the path: the command, in a process of its own: as often right as the model."""
    run = open_run(compressed_run)
    photos = {str(run.dataset.root / photo.path): photo.label for photo in run.dataset.split("test")}
    for format, precision in MADE:
        model = exported / f"small_{precision}.{format}"
        command = [sys.executable, "-m", "runtime.classify", "--json", "--model", str(model), *photos]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["source"] for answer in said] == list(photos)
        right = sum(answer["label"] == photos[answer["source"]] for answer in said)
        assert abs(right - run.metrics["test"]["top1"] * len(photos)) <= 1, model.name


def test_a_compressed_run_is_exported_like_any_other(exported: Path, compressed_run: Path) -> None:
    """Its int8 files are held to its own float model, and beside that stands the uncompressed one."""
    run, index = open_run(compressed_run), read_index(exported)
    assert index.contract.input_size == (64, 64)
    for file in index.files:
        heads = file.metrics["macs"] - run.compressed["macs"]
        assert 0 < heads < run.compressed["macs"] / 50, "all convolutions, and the two heads"
    with (exported / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    said = run.uncompressed_labels()
    for row in rows:
        assert row["verdict"] == "holds" and row["uncompressed_disagreements"] != ""
    assert "| uncompressed, float32 | 224 x 224 |" in (exported / "README.md").read_text()
    photo = run.dataset.split("test")[0]
    assert photo.path in said
    answer = Classifier(exported)(run.dataset.root / photo.path)
    assert answer.label in run.classes


def test_a_corrupted_weight_is_caught_and_replaces_nothing(
    exported: Path,
    compressed_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One kernel of one layer is spoilt on its way into one file: exit 3, and the old folder untouched."""
    import keras

    from export import formats
    from export import tflite as to_tflite

    def spoilt(model: keras.Model) -> bytes:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        kernel, bias = copy.get_layer("block3_conv2").get_weights()
        kernel[1, 1, 7, :] += np.float32(1.0)
        copy.get_layer("block3_conv2").set_weights([kernel, bias])
        return to_tflite.float32(copy)

    monkeypatch.setitem(formats.FLOAT_FORMATS, ("tflite", "float32"), spoilt)
    before = held(exported)
    capsys.readouterr()
    command = [str(compressed_run), "--photos", "2", "--engines", "litert", "onnx"]
    assert main([*command, "--out", str(exported)]) == 3
    said = capsys.readouterr()
    assert held(exported) == before
    rejected = exported.with_name("small.rejected")
    assert set(held(rejected)) == {
        "small_float32.tflite",
        "small_float32.onnx",
        INDEX_NAME,
        "parity.csv",
        "README.md",
    }
    assert "FAILS" in said.out
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: tflite float32 in litert")
    assert "is over 0.0001" in errors[0]
    assert "is as it was" in errors[1] and str(rejected) in errors[1]
    assert len(errors) == 2  # the ONNX file holds
    shutil.rmtree(rejected)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_no_run(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "python -m train" in refused([], capsys)
    assert "nowhere: no such folder" in refused(["nowhere"], capsys)
    (empty / "half").mkdir()
    assert "run.json is missing" in refused(["half"], capsys)


def test_a_folder_of_something_else_is_kept(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "thesis").mkdir()
    (empty / "thesis" / "chapter.txt").write_text("years of work")
    assert "holds other files" in refused([str(synthetic_run), "--out", "thesis"], capsys)
    assert (empty / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "out", "says"),
    [
        (
            {},
            "2025-01-31T12:00:00",
            r"m/.*: '2025-01-31T12:00:00_float32\.tflite' is not a bare file name; give",
        ),
        ({}, "a\x1b[2J", "the name is not one of 1 to 200 printable characters; give another --out"),
        ({}, "a\udce9", "the name is not one of 1 to 200 printable characters; give another --out"),
        ({}, "a" * 190, "is not a bare file name; give another --out"),
        (
            {"labels": ("daisy", "d" * 201)},
            "m",
            "run runs/r: .* a label is not a name of .*; give its classes",
        ),
        ({"labels": tuple(map(str, range(10_001)))}, "m", "labels must be 2 to 10,000 different names"),
        ({"labels": tuple(f"{n:0200}" for n in range(6_000))}, "m", "is over 1,048,576 bytes"),
        ({"versions": {"keras": None}}, "m", "versions must be texts by the name of a package"),
    ],
)
def test_what_no_device_would_open_is_not_made(
    contract: Contract, changes: dict[str, Any], out: str, says: str
) -> None:
    precisions = ("float32", "int8")
    _check_readable(contract, precisions, Path("runs/r"), Path("m"))
    with pytest.raises(UserError, match=says):
        _check_readable(replace(contract, name=out, **changes), precisions, Path("runs/r"), Path("m", out))


def test_a_name_that_no_device_would_open_is_told_before_the_work(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "models/2025-01-31T12:00:00"
    assert "is not a bare file name; give another --out" in refused(
        [str(synthetic_run), "--out", out], capsys
    )
    assert not (empty / "models").exists()


def test_an_index_that_its_figures_make_too_long_is_not_written(
    synthetic_run: Path, contract: Contract, float_files: dict[tuple[str, str], bytes]
) -> None:
    left = MAX_JSON_BYTES - len(Index(contract, ()).to_json().encode())
    full = replace(contract, base_sha256=left * "a")
    key = ("tflite", "float32")
    with pytest.raises(UserError, match=r"model\.json: is over 1,048,576 bytes"):
        _contents(full, open_run(synthetic_run), {key: float_files[key]}, {key: ""}, [])


def test_each_format_needs_an_engine(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([str(synthetic_run), "--engines", "litert"], capsys)
    assert "none of them runs onnx files" in line


def test_photos_that_have_moved(synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = empty / "runs" / "moved"
    shutil.copytree(synthetic_run, copy)
    record = (copy / "run.json").read_text()
    root = str(open_run(synthetic_run).dataset.root)
    (copy / "run.json").write_text(record.replace(root, str(empty / "gone")))
    assert "put the photos back" in refused([str(copy)], capsys)
    assert not (empty / "models").exists()


def test_int8_needs_val_photos(synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(synthetic_run, empty / "copy")
    photos = (copy / "photos.csv").read_text().splitlines(keepends=True)
    (copy / "photos.csv").write_text("".join(line for line in photos if ",val," not in line))
    assert "no val photos to choose an int8 recipe on" in refused([str(copy), "--int8"], capsys)


def test_ctrl_c_replaces_nothing(
    exported: Path, compressed_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.__main__._convert", interrupted)
    before = held(exported)
    assert main([str(compressed_run), "--photos", "1", "--out", str(exported)]) == 130
    assert held(exported) == before
    assert "nothing old is replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--photos", "0"],
        ["--engines", "tpu"],
        ["a", "b"],
        ["--keep", "int8.tflite"],
        ["--dynamic", "--keep", "dynamic.onnx"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
