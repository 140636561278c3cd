"""The model card says what the record says, whatever characters the labels have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from export.model_card import card
from export.parity.parity import ParityResult
from runtime.model_file.contract import Contract
from runtime.model_file.index import Index, IndexedFile
from tests.export.parity.test_parity import ROW
from train.data.dataset import Dataset, Photo
from train.run import Run


def made(
    contract: Contract,
    metrics: dict[str, object],
    settings: dict[str, object] | None = None,
    compressed: dict[str, object] | None = None,
    row: ParityResult = ROW,
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
        versions=contract.versions,
        metrics=metrics,
        thresholds={},
        compressed=compressed or {},
    )
    counted = {"macs": 1_530_000_000}
    file = IndexedFile("small_int8.tflite", "tflite", "int8", 1_000_000, "c" * 64, counted)
    index = Index(contract, (file,))
    return card(index, run, [row], {"small_int8.tflite": "per-channel, float head"})


def test_figures_are_the_records(contract: Contract) -> None:
    text = made(contract, {"test": {"n": 2, "top1": 0.5, "loss": 1.0}, "val": None})
    assert "top-1 50.0% of 2 test photos" in text
    assert "3 drawn pictures to train on, 0 to choose the best epoch, 2 to test" in text
    assert contract.data_sha256 in text
    assert "| tflite | int8 | litert 2.3.0 | 500 | 90.0% | 100.0% |" in text
    assert "| `small_int8.tflite` | 1.0 | 1.53 | per-channel, float head |" in text
    assert "Trained on drawn pictures" in text
    assert "/home/somebody" not in text


def test_front_matter_is_yaml_whatever_the_name(contract: Contract) -> None:
    name = 'flowers: "best" # 1\n---'
    text = made(Contract(**{**vars(contract), "name": name}), {})
    front = text.split("\n---\n")[0].splitlines()
    assert front[0] == "---"
    (line,) = [line for line in front if line.startswith("- name: ")]
    assert json.loads(line.removeprefix("- name: ")) == name
    assert "    - {type: accuracy, value: 0.9000" in "\n".join(front)


def test_labels_are_text_not_markup(contract: Contract) -> None:
    text = made(Contract(**{**vars(contract), "labels": ("a|b", "<script>")}), {})
    assert r"a\|b, \<script\>" in text


def test_what_was_trained_on_and_what_is_unknown_is_told(contract: Contract) -> None:
    metrics: dict[str, object] = {"test": None, "val": None}
    plain = made(contract, metrics)
    assert "convolution layers, frozen, under" in plain and "`known`" not in plain
    knowing = made(replace(contract, thresholds={"known": 0.5}), metrics, {"fine_tune": "block5"})
    assert "convolution layers, frozen below block5 and trained on from there, under" in knowing
    assert "Under 0.5 the runtime answers `unknown`" in knowing


def test_a_compressed_run_shows_both_models(contract: Contract) -> None:
    done = {
        "from": "flowers_run",
        "epochs": 20,
        "size": 160,
        "macs": 1_500_000_000,
        "of_macs": 15_346_630_656,
        "uncompressed_top1": {"val": None, "test": 0.948},
    }
    text = made(
        contract,
        {"test": {"n": 500, "top1": 0.94}, "val": None},
        compressed=done,
        row=replace(ROW, uncompressed_disagreements=25),
    )
    assert r"compressed from the run flowers\_run" in text and "10.2 times fewer multiplications" in text
    assert "| uncompressed, float32 | 224 x 224 | 15.35 |  | 94.8% |" in text
    assert "| compressed, float32 | 160 x 160 | 1.50 |  | 94.0% |" in text
    assert "convolution layers, compressed and trained on, under" in text
    assert "| uncompressed | ms |" in text and "| 95.0% | 1.0 | holds |" in text
    assert "compressed" not in made(contract, {"test": None, "val": None})
