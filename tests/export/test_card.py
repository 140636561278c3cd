"""The model card says what the record says, whatever characters the labels have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from export.card import card
from runtime.model import Contract, Index, IndexedFile
from tests.export.test_parity import ROW
from train.dataset import Dataset, Photo
from train.run import Run


def made(contract: Contract, metrics: dict[str, object], settings: dict[str, object] | None = None) -> str:
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
    )
    index = Index(contract, (IndexedFile("small_int8.tflite", "tflite", "int8", 1_000_000, "c" * 64, {}),))
    return card(index, run, [ROW], {"small_int8.tflite": "per-channel, float head"})


def test_figures_are_the_records(contract: Contract) -> None:
    text = made(contract, {"test": {"n": 2, "top1": 0.5, "loss": 1.0}, "val": None})
    assert "top-1 50.0% of 2 test photos" in text
    assert "3 drawn pictures to train on, 0 to choose the best epoch, 2 to test" in text
    assert contract.data_sha256 in text
    assert "| tflite | int8 | litert 2.3.0 | 500 | 90.0% | 100.0% |" in text
    assert "| `small_int8.tflite` | 1.0 | per-channel, float head |" in text
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
