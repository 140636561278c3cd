"""The command on runs of generated pictures and a small backbone: every format, and every refusal.

The full VGG16 passes every gate in tests/accuracy.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import pipeline
from export.__main__ import main
from export.output_dir import OutputDirError, lock_output_dir
from export.parity.gates import PASSED, TOO_FEW_PHOTOS
from export.parity.result import FileKey
from export.parity.runner import file_engine_pairs
from export.time_left import compression_hint
from runtime import Classifier
from runtime.classify import main as classify
from runtime.inference.engines import engine_name
from runtime.inference.model_proof import check_answer
from runtime.model_file.files import INDEX_NAME
from runtime.model_file.index import read_index
from runtime.model_file.loader import open_model
from runtime.preprocess.picture import PICTURE_VERSION
from train.run import open_run
from train.run_writer import write_record

MADE = [
    FileKey("tflite", "float32"),
    FileKey("tflite", "float16"),
    FileKey("tflite", "dynamic"),
    FileKey("onnx", "float32"),
    FileKey("onnx", "float16"),
    FileKey("tflite", "int8"),
    FileKey("onnx", "int8"),
    FileKey("tflite", "full_int8"),
]


@dataclass(frozen=True)
class Export:
    """A model folder, and the output of the command that wrote it."""

    folder: Path
    printed: str


def run_export(out: Path, *arguments: str) -> Export:
    with redirect_stdout(io.StringIO()) as printed:
        assert main([*arguments, "--out", str(out)]) == 0
    return Export(out, printed.getvalue())


@pytest.fixture(scope="session")
def export(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Every format of the uncompressed run, compared on all its test photos."""
    return run_export(tmp_path_factory.mktemp("models") / "small", str(synthetic_run), "--all")


@pytest.fixture(scope="session")
def exported(export: Export) -> Path:
    return export.folder


@pytest.fixture(scope="session")
def compressed_export(compressed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The ONNX file of the compressed run."""
    out = tmp_path_factory.mktemp("models") / "one"
    return run_export(out, str(compressed_run), "--engines", "onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parity_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "parity.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_format_is_written_and_opens(exported: Path, synthetic_run: Path) -> None:
    run = open_run(synthetic_run)
    index = read_index(exported)
    assert [(file.format, file.precision) for file in index.files] == MADE
    assert {path.name for path in exported.iterdir()} == {
        *(f"small_{precision}.{format}" for format, precision in MADE),
        INDEX_NAME,
        "README.md",
        "parity.csv",
    }
    assert index.contract.labels == run.classes
    assert index.contract.data_sha256 == run.data_sha256
    assert index.contract.synthetic
    assert (index.contract.version, index.contract.release) == (2, 1)
    statistics = run.statistics()
    assert statistics is not None and statistics.means.shape[1] == index.contract.features
    for file in index.files:
        model = open_model(exported / file.file)  # verifies the bytes and the contract inside
        assert model.contract == index.contract
        assert model.read_statistics().to_bytes() == statistics.to_bytes()
        check_answer(Classifier(exported / file.file))  # the golden picture
        assert set(file.metrics["parity"]) and ("int8" not in file.precision or file.metrics["recipe"])


def test_every_file_is_compared_in_every_engine(exported: Path) -> None:
    rows = parity_rows(exported)
    compared = {((row["format"], row["precision"]), engine_name(row["engine"])) for row in rows}
    assert compared == set(file_engine_pairs(MADE))
    assert {row["verdict"] for row in rows if "float" in row["precision"]} == {PASSED}
    assert {row["verdict"] for row in rows if "float" not in row["precision"]} == {TOO_FEW_PHOTOS}
    assert {row["n"] for row in rows} == {"5"}


def test_every_file_labels_the_test_photos_like_the_model(
    exported: Path, synthetic_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(synthetic_run)
    photos = {str(run.dataset.root / photo.path): photo.label for photo in run.dataset.split("test")}
    for format, precision in MADE:
        model = exported / f"small_{precision}.{format}"
        engine = "litert" if format == "tflite" else "onnx"
        capsys.readouterr()
        assert classify(["--json", "--engine", engine, "--model", str(model), *photos]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [answer["source"] for answer in answers] == list(photos)
        right = sum(answer["label"] == photos[answer["source"]] for answer in answers)
        assert abs(right - run.metrics["test"]["top1"] * len(photos)) <= 1, model.name


def test_a_compressed_run_is_also_compared_with_the_uncompressed_model(
    compressed_export: Export, compressed_run: Path
) -> None:
    run, folder = open_run(compressed_run), compressed_export.folder
    (file,) = read_index(folder).files
    heads = file.metrics["macs"] - run.compressed["macs"]
    assert 0 < heads < run.compressed["macs"], "all convolutions and the two heads"
    assert all(row["uncompressed_disagreements"] for row in parity_rows(folder))
    assert "| uncompressed, float32 |" in (folder / "README.md").read_text(encoding="utf-8")
    photo = run.dataset.split("test")[0]
    assert photo.path in run.uncompressed_labels()
    assert Classifier(folder)(run.dataset.root / photo.path).label in run.classes


def test_a_corrupted_weight_exits_with_3_and_replaces_nothing(
    exported: Path,
    synthetic_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import keras

    from export import formats, tflite_converter

    def corrupted(model: keras.Model) -> bytes:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        kernel, bias = copy.get_layer("block3_conv2").get_weights()
        kernel[1, 1, 0, :] += 1
        copy.get_layer("block3_conv2").set_weights([kernel, bias])
        return tflite_converter.float32(copy)

    monkeypatch.setitem(formats.FLOAT_CONVERTERS, FileKey("tflite", "float32"), corrupted)
    before = contents(exported)
    capsys.readouterr()
    options = ["--photos", "2", "--engines", "litert", "onnx"]
    assert main([str(synthetic_run), *options, "--out", str(exported)]) == 3
    printed = capsys.readouterr()
    assert contents(exported) == before
    rejected = exported.with_name("small.rejected")
    files = {"small_float32.tflite", "small_float32.onnx", INDEX_NAME, "parity.csv", "README.md"}
    assert set(contents(rejected)) == files
    assert "failed" in printed.out and "Use small" not in printed.out  # no file of this export is for use
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: tflite float32 in litert")
    assert "is over 0.0001" in errors[0]
    assert "unchanged" in errors[1] and str(rejected) in errors[1]
    assert len(errors) == 2  # the ONNX file passes
    shutil.rmtree(rejected)


def test_onnx_alone_makes_only_onnx_files(compressed_export: Export) -> None:
    folder, printed = compressed_export.folder, compressed_export.printed
    assert {file.format for file in read_index(folder).files} == {"onnx"}
    assert {engine_name(row["engine"]) for row in parity_rows(folder)} == {"onnx"}
    assert "time: about " in printed and "Use one_float32.onnx: " in printed
    assert "train.compress" not in printed  # this run is compressed


def test_litert_alone_makes_only_tflite_files() -> None:
    files = pipeline.file_keys(("float32", "dynamic", "int8", "full_int8"), ("litert",))
    assert files == (
        FileKey("tflite", "float32"),
        FileKey("tflite", "dynamic"),
        FileKey("tflite", "int8"),
        FileKey("tflite", "full_int8"),
    )
    assert pipeline.file_keys(("float32", "dynamic", "full_int8"), ("onnx",)) == (FileKey("onnx", "float32"),)


def test_an_uncompressed_int8_export_prints_the_command_that_compresses_it(
    export: Export, synthetic_run: Path
) -> None:
    assert f"python -m train.compress {synthetic_run} --reduce 10" in export.printed
    assert "Use small_int8.tflite: " in export.printed


def test_the_newest_run_is_printed_when_none_is_given(
    compressed_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "small").symlink_to(compressed_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "_load", interrupt)
    assert main([]) == 130
    printed = capsys.readouterr().out
    assert "run: runs/small (the newest run" in printed and "generated pictures" in printed


def test_the_speed_of_an_uncompressed_model_is_printed_with_the_command_that_compresses_it() -> None:
    hint = compression_hint(Path("runs/my flowers"), 15_346_630_656)
    assert "15.35 GMAC" in hint and "1.53 GMAC" in hint and "8 times slower" in hint
    assert "python -m train.compress 'runs/my flowers' --reduce 10" in hint


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of a command that exits with 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_all_missing_packages_are_named_with_one_install_line(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"tensorflow", "onnx", "litert_quantizer"}
    monkeypatch.setattr("train.cli.find_spec", lambda name: None if name in missing else name)
    line = refusal([], capsys)
    assert all(name in line for name in missing)
    assert "pip install '.[train,export]'" in line


def test_a_missing_run_names_the_command_that_trains(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "python -m train" in refusal([], capsys)
    assert "nowhere" in refusal(["nowhere"], capsys)
    (empty / "half").mkdir()
    assert "run.json" in refusal(["half"], capsys)


def test_a_folder_with_other_files_is_not_replaced(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "thesis").mkdir()
    (empty / "thesis" / "chapter.txt").write_text("years of work")
    line = refusal([str(synthetic_run), "--out", "thesis"], capsys)
    assert "thesis" in line and "--out" in line
    assert (empty / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_name_that_a_device_would_refuse_stops_before_the_work(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "models/2025-01-31T12:00:00"
    assert "--out" in refusal([str(synthetic_run), "--out", out], capsys)
    assert not (empty / "models").exists()


def test_moved_photos_are_an_error_that_names_the_next_step(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = empty / "runs" / "moved"
    shutil.copytree(synthetic_run, copy)
    record = (copy / "run.json").read_text()
    root = str(open_run(synthetic_run).dataset.root)
    (copy / "run.json").write_text(record.replace(root, str(empty / "gone")))
    assert str(empty / "gone") in refusal([str(copy)], capsys)
    assert not (empty / "models").exists()


def test_int8_without_val_photos_is_refused(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(synthetic_run, empty / "copy")
    dataset = open_run(synthetic_run).dataset
    dataset = replace(dataset, photos=tuple(photo for photo in dataset.photos if photo.split != "val"))
    write_record(copy, json.loads((copy / "run.json").read_text()), dataset)
    line = refusal([str(copy), "--int8"], capsys)
    assert "val photos" in line and "without --int8" in line


def test_a_run_of_other_pixels_is_refused(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parity compares files and model on the same pixels: it cannot show that training saw others."""
    copy = shutil.copytree(synthetic_run, empty / "copy")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"picture_version": PICTURE_VERSION - 1}))
    line = refusal([str(copy)], capsys)
    assert f"pictures of version {PICTURE_VERSION - 1}" in line and "train it again" in line


def test_a_second_export_to_the_same_folder_is_refused(
    synthetic_run: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "models").mkdir()
    with lock_output_dir(Path("models/mine")):
        assert "another export" in refusal([str(synthetic_run), "--out", "models/mine"], capsys)


def test_the_broken_bounds_are_printed_also_where_the_rejected_files_have_no_room(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OutputDirError("no space left")

    monkeypatch.setattr(pipeline, "replace_dir", full)
    job = SimpleNamespace(out=empty / "mine", rejected=empty / "mine.rejected")
    with pytest.raises(OutputDirError):
        pipeline._reject(job, {}, ["tflite int8 in litert: max |Δp| 0.3 is over 0.25"])
    assert "max |Δp| 0.3 is over 0.25" in capsys.readouterr().err


def test_ctrl_c_replaces_nothing(
    exported: Path, synthetic_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "_convert", interrupt)
    before = contents(exported)
    assert main([str(synthetic_run), "--photos", "1", "--out", str(exported)]) == 130
    assert contents(exported) == before
    assert "replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--photos", "0"],
        ["--engines", "tpu"],
        ["a", "b"],
        ["--keep", "int8.tflite"],
        ["--dynamic", "--keep", "dynamic.onnx"],
        ["--engines", "litert", "--keep", "float32.onnx"],
        ["--engines", "onnx", "--dynamic"],
        ["--engines", "onnx", "onnx", "--dynamic"],
        ["--engines", "onnx", "--full-int8"],
        ["--full-int8", "--keep", "full_int8.onnx"],
        ["--engines", "onnx", "openvino", "--dynamic"],
    ],
)
def test_a_usage_error_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
