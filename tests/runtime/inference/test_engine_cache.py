"""A saved measurement is used until something changes that could make it wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import Classifier
from runtime.classify import main
from runtime.inference import engine_cache, model_reloader
from runtime.inference.engine_cache import EngineSelection, load_selection, save_selection
from runtime.inference.engines import ENGINES
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.selection import choose_model
from tests.runtime.conftest import needs_tflite

FILES = (("tflite", "float32"), ("onnx", "float32"))


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_folder(tmp_path / "colours", *FILES)


def save_for(folder: Path, **changes: object) -> Path:
    """What the rule would not choose: the ONNX file, on one thread."""
    files = choose_model(folder).candidates
    (onnx,) = (file for file in files if file.format == "onnx")
    choice = {"sha256": onnx.sha256, "engine": "onnx", "threads": 1, "median_ms": 2.6}
    return save_selection(files, EngineSelection(**{**choice, "measured": "2026-11-26T12:00:00Z", **changes}))  # type: ignore[arg-type]


def test_auto_uses_the_measured_engine_and_threads(
    folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_rule = Classifier(folder)
    assert by_rule.session.name == "litert"
    assert by_rule.engine_reason.startswith("auto: litert, by rule: ")
    assert "(not measured on this machine)" in by_rule.engine_reason
    save_for(folder)
    measured = Classifier(folder)
    assert (measured.model.path.suffix, measured.threads) == (".onnx", 1)
    assert measured.session.name == "onnx" and measured(photos / "red.jpg").label == "红"
    assert measured.engine_reason == "auto: onnx, measured 2026-11-26: 2.6 ms on 1 thread"
    assert Classifier(folder, threads=2).threads == 2
    named = Classifier(folder, engine="litert")
    assert (named.model.path.suffix, named.engine_reason) == (".tflite", "")

    capsys.readouterr()
    assert main([str(photos / "red.jpg"), "--model", str(folder), "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert "colours_float32.onnx on onnx " in out and measured.engine_reason in err.splitlines()
    assert main([str(photos / "red.jpg"), "--model", str(folder)]) == 0
    assert capsys.readouterr().err == ""


def test_a_reloading_classifier_keeps_the_measured_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_reloader, "POLL_SECONDS", 0.01)
    save_for(folder)
    classifier = ReloadingClassifier(folder)
    first = classifier.current()
    assert first.session.name == "onnx"
    for _ in range(5):
        time.sleep(0.02)
        assert classifier.current() is first


def test_another_model_invalidates_the_measurement(
    folder: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    save_for(folder)
    assert isinstance(load_selection(choose_model(folder).candidates), EngineSelection)
    copied = folder.rename(tmp_path / "elsewhere")  # the same files in another place are the same model
    assert isinstance(load_selection(choose_model(copied).candidates), EngineSelection)
    make_folder(folder, *FILES, labels=("blue", "green", "red"))
    assert load_selection(choose_model(folder).candidates) == "not measured on this machine"
    assert Classifier(folder).session.name == "litert"
    (copied / "colours_float32.tflite").unlink()
    assert load_selection(choose_model(copied).candidates) == "not measured on this machine"


def test_a_model_replaced_after_the_selection_is_opened_by_rule(
    folder: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_for(folder)

    def exchanging(files: object) -> EngineSelection | str:
        found = load_selection(choose_model(folder).candidates)
        folder.rename(folder.with_name("old"))
        make_folder(folder, *FILES, labels=("blue", "green", "red"))
        return found

    monkeypatch.setattr("runtime.inference.classifier.load_selection", exchanging)
    classifier = Classifier(folder)
    assert classifier.session.name == "litert" and classifier.model.contract.labels[0] == "blue"
    assert "by rule" in classifier.engine_reason


def test_another_engine_version_invalidates_the_measurement(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_for(folder)
    package = tmp_path / "upgraded" / ENGINES["litert"].module
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    package.with_name(f"{package.name}-99.1.dist-info").mkdir()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, ENGINES["litert"].module, raising=False)
    reason = load_selection(choose_model(folder).candidates)
    assert isinstance(reason, str) and reason.startswith("measured before a change: litert was ")
    assert reason.endswith(", is 99.1")


@needs_tflite
def test_installing_or_removing_an_engine_invalidates_the_measurement(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_for(folder)
    with monkeypatch.context() as patch:
        patch.setattr(engine_cache, "is_installed", lambda engine: engine != "tflite")
        reason = load_selection(choose_model(folder).candidates)
        assert isinstance(reason, str) and "tflite was " in reason and reason.endswith("is None")
        save_for(folder)
        assert isinstance(load_selection(choose_model(folder).candidates), EngineSelection)
    reason = load_selection(choose_model(folder).candidates)
    assert isinstance(reason, str) and "tflite was None" in reason


def test_another_processor_invalidates_the_measurement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_for(folder)
    monkeypatch.setattr(engine_cache, "cpu_name", lambda: "Cortex-A76, asimddp")
    reason = load_selection(choose_model(folder).candidates)
    assert isinstance(reason, str) and reason.endswith(", is Cortex-A76, asimddp")
    classifier = Classifier(folder)
    assert classifier.session.name == "litert" and reason in classifier.engine_reason


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's way to take cores away")
def test_fewer_cores_invalidate_the_measurement(folder: Path) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        pytest.skip("one core cannot become fewer")
    save_for(folder)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert load_selection(choose_model(folder).candidates) == (
            f"measured before a change: cores was {len(cores)}, is 1"
        )
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe\0",
        b"[" * 60_000,
        b'{"machine": {}}',
        b'{"machine": 1, "threads": ' + b"9" * 6000 + b"}",
        {"threads": 0},
        {"threads": 10**6},
        {"threads": True},
        {"threads": "2"},
        {"engine": "torch"},
        {"engine": "litert"},  # does not run ONNX files
        {"engine": ["onnx"]},
        {"sha256": "0" * 64},
        {"median_ms": float("nan")},
        {"measured": None},
        {"others": {"torch": 1.0}},
        {"others": {"litert": "fast"}},
        {"others": {"litert": float("inf")}},
    ],
    ids=repr,
)
def test_a_damaged_cache_file_is_ignored_and_reported(
    folder: Path, photos: Path, damage: bytes | dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_for(folder)
    fields = json.loads(path.read_bytes())
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps({**fields, **damage}).encode())
    assert load_selection(choose_model(folder).candidates) == f"{path} is damaged"
    assert main([str(photos / "red.jpg"), "--model", str(folder), "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert "colours_float32.tflite on litert " in out and f"({path} is damaged)" in err


@pytest.mark.skipif(os.name != "posix", reason="pipes and permissions of POSIX")
def test_a_pipe_or_file_in_place_of_the_cache_is_ignored(folder: Path) -> None:
    path = save_for(folder)
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    assert load_selection(choose_model(folder).candidates) == "not measured on this machine"
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("no folder")
    reason = load_selection(choose_model(folder).candidates)
    assert isinstance(reason, str) and Classifier(folder).session.name == "litert"


def test_a_single_file_has_its_own_measurement(folder: Path) -> None:
    file = choose_model(folder, ["onnx"]).path
    save_for(folder)
    assert "by rule" in Classifier(file).engine_reason
    save_selection(
        choose_model(file).candidates,
        EngineSelection(choose_model(file).candidates[0].sha256, "onnx", 1, 3.0, "2026-11-26"),
    )
    assert Classifier(file).engine_reason == "auto: onnx, measured 2026-11-26: 3.0 ms on 1 thread"
    (folder / "model.json").unlink()
    assert "without its model.json" in Classifier(file).engine_reason


@needs_tflite
def test_only_the_measured_engine_is_imported(folder: Path) -> None:
    """tflite-runtime breaks beside others: the import ahead must be of the engine that was measured."""
    files = choose_model(folder).candidates
    (tflite,) = (file for file in files if file.format == "tflite")
    save_for(folder, sha256=tflite.sha256, engine="tflite")
    code = "import sys; from runtime import Classifier; Classifier(sys.argv[1]); print(*list(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, check=True, text=True
    )
    assert {name for name in ENGINES if ENGINES[name].module in done.stdout.split()} == {"tflite"}
