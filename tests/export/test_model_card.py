"""The model card has the recorded figures, and labels with any characters are escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.model_card import model_card
from export.parity.result import ParityResult
from runtime.model_file.contract import Contract
from runtime.model_file.index import Index, IndexedFile
from tests.export.parity.results import RESULT
from tests.helpers import RELEASED
from train.data.dataset import Dataset, Photo
from train.run import Run


def card(
    contract: Contract,
    metrics: dict[str, object],
    settings: dict[str, object] | None = None,
    compressed: dict[str, object] | None = None,
    results: Sequence[ParityResult] = (RESULT,),
    discarded: bool = False,
    format: str = "tflite",
) -> str:
    photos = tuple(
        Photo(f"{i}.jpg", "daisy", split, "0") for i, split in enumerate(["train"] * 3 + ["test"] * 2)
    )
    run = Run(
        path=Path("/home/somebody/runs/small"),
        name="small",
        created=contract.created,
        recipe="pooled",
        settings=settings or {},
        classes=contract.labels,
        dataset=Dataset(Path("/home/somebody/photos"), contract.labels, photos),
        synthetic=contract.synthetic,
        base_sha256=contract.base_sha256,
        data_sha256=contract.data_sha256,
        picture_version=1,
        device="cpu:0",
        fine_tuning_discarded=discarded,
        versions=contract.versions,
        metrics=metrics,
        thresholds={},
        compressed=compressed or {},
    )
    counted = {"macs": 1_530_000_000}
    file = IndexedFile(f"small_int8.{format}", format, "int8", 1_000_000, "c" * 64, counted)
    index = Index(contract, (file,))
    results = [replace(result, format=format) for result in results]
    recipes = {file.file: "per-channel, float head"}
    return model_card(index, run, results, recipes, "float16: no overflow")


def read_run(name: str) -> dict[str, str]:
    return dict(json.loads((RELEASED.parent / name / "run.json").read_text()))


def test_figures_are_the_recorded_figures(contract: Contract) -> None:
    text = card(contract, {"test": {"n": 2, "top1": 0.5, "loss": 1.0}, "val": None})
    assert "top-1 50.0% on 2 test photos" in text
    assert "3 generated pictures for training, 0 for validation and 2 for testing" in text
    assert contract.data_sha256 in text
    assert "| tflite | int8 | litert 2.3.0 | 1.0 | 90.0% | 100.0% |" in text and "500 test photos" in text
    assert "| `small_int8.tflite` | 1.0 | 1.53 | per-channel, float head |" in text
    assert "Trained on generated pictures" in text
    assert "/home/somebody" not in text
    assert "float16: no overflow." in text
    assert f"Release {contract.release} of this folder" in text


def test_front_matter_is_yaml_for_any_name(contract: Contract) -> None:
    name = 'flowers: "best" # 1\n---'
    text = card(Contract(**{**vars(contract), "name": name}), {})
    front = text.split("\n---\n")[0].splitlines()
    assert front[0] == "---"
    (line,) = [line for line in front if line.startswith("- name: ")]
    assert json.loads(line.removeprefix("- name: ")) == name
    assert "    - {type: accuracy, value: 0.9000" in "\n".join(front)


def test_a_top1_is_of_the_photos_of_its_file(contract: Contract) -> None:
    front, text = card(contract, {}, results=(replace(RESULT, engine="onnx", n=60), RESULT)).split("\n---\n")
    few, most = front.split("60 test photos of the run")[1].split("500 test photos of the run")
    assert "int8 in onnx" in few and "litert" not in few
    assert "int8 in litert 2.3.0" in most and "onnx" not in most
    assert "None of 500 photos got another label" in text


def test_a_file_that_was_not_kept_is_in_the_parity_table_alone(contract: Contract) -> None:
    worse = replace(RESULT, precision="full_int8", disagreements=7)
    text = card(contract, {}, results=(RESULT, worse))
    assert "| tflite | full_int8 |" in text and "were not kept" in text
    assert "top-1 of tflite int8" in text and "top-1 of tflite full_int8" not in text
    assert "None of 500 photos got another label" in text
    assert "were not kept" not in card(contract, {})


def test_the_licence_is_that_of_the_base_weights(contract: Contract) -> None:
    bundled = replace(contract, base_sha256=read_run("flowers_run")["base_sha256"])
    text = card(bundled, {})
    assert "license: cc-by-4.0" in text and "come from the ImageNet VGG16" in text
    other = card(contract, {})
    assert "license: other" in other and "come from the ImageNet" not in other and "`--weights`" in other


def test_a_folder_of_onnx_files_is_of_the_library_onnx(contract: Contract) -> None:
    assert "library_name: litert" in card(contract, {})
    assert "library_name: onnx" in card(contract, {}, format="onnx")


def test_markup_in_labels_is_escaped(contract: Contract) -> None:
    text = card(Contract(**{**vars(contract), "labels": ("a|b", "<script>")}), {})
    assert r"a\|b, \<script\>" in text


def test_the_card_describes_training_and_the_unknown_decision(contract: Contract) -> None:
    metrics: dict[str, object] = {"test": None, "val": None}
    plain = card(contract, metrics)
    assert "are frozen." in plain and "`known`" not in plain
    knowing = card(replace(contract, thresholds={"known": 0.5}), metrics, {"fine_tune": "block5"})
    assert "frozen below block5 and fine-tuned" in knowing
    discarded = card(contract, metrics, {"fine_tune": "block5"}, discarded=True)
    assert "are frozen (fine-tuning from block5 on did not" in discarded
    assert "and fine-tuned" not in discarded
    assert "Below 0.5 the runtime reports `unknown`" in knowing


def test_the_card_says_how_often_other_pictures_are_named(contract: Contract) -> None:
    knowing = replace(contract, thresholds={"known": 0.5})
    measured = {"n": 500, "top1": 0.9, "unknown": 0.018}
    metrics = {"test": {**measured, "default_named": 0.25, "default_negatives": 180}}
    text = card(knowing, metrics)
    assert "The trained model rejected 1.8% of the 500 test photos" in text
    assert "Of 180 drawings of other things, 25.0% got" in text
    metrics["test"] |= {"named": 0.1, "negatives": 20}
    both = card(knowing, metrics)
    assert "Of 20 test photos of none of the classes, 10.0% got" in both and "Of 180 drawings" in both
    assert "drawings" not in card(knowing, {"test": measured})


def test_a_compressed_run_shows_both_models(contract: Contract) -> None:
    done = {
        "from": "flowers_run",
        "through": "",
        "epochs": 20,
        "size": 160,
        "macs": 1_500_000_000,
        "of_size": 224,
        "of_macs": 15_346_630_656,
        "uncompressed_top1": {"val": None, "test": 0.948},
    }
    text = card(
        contract,
        {"test": {"n": 500, "top1": 0.94}, "val": None},
        compressed=done,
        results=(replace(RESULT, uncompressed_disagreements=25),),
    )
    assert r"flowers\_run" in text and "10.2 times fewer multiplications" in text
    assert "| uncompressed, float32 | 224 x 224 | 15.35 |  | 94.8% |" in text
    assert "| compressed, float32 | 160 x 160 | 1.50 |  | 94.0% |" in text
    assert "are compressed and then trained" in text and "in steps" not in text
    assert "| same as uncompressed | ms |" in text and "| 95.0% | 1.0 | passed |" in text
    assert "compressed" not in card(contract, {"test": None, "val": None})
    again = card(contract, {"test": None, "val": None}, compressed={**done, "through": "flowers_10"})
    assert r"made in steps, the last one from the run flowers\_10" in again
    assert r"outputs of the model of flowers\_10" in again
