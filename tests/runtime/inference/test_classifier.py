"""Classifier in other programs: in forked processes and threads, and with sources that are no pictures.

An engine that cannot be imported is replaced by the next one.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime import Classifier
from runtime.common.errors import EngineError, PictureError
from runtime.inference import engine_timing
from runtime.inference.engine_cache import EngineSelection, save_selection
from runtime.inference.engines import ENGINES
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.selection import choose_model
from tests.helpers import ROOT
from tests.runtime.scene import scene_pictures

FORKING = """
import os, sys
from runtime import Classifier
classifier = Classifier(sys.argv[1], engine=sys.argv[2], threads=2)
label = classifier(sys.argv[3]).label
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
os._exit(classifier(sys.argv[3]).label != label)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("engine", ["litert", "tflite"])
def test_a_forked_process_classifies(engine: str, photos: Path) -> None:
    """tflite-runtime waited for its threads, which are in the parent."""
    model = ROOT / "models" / "flowers_small"  # the tiny model uses one thread
    run = [sys.executable, "-c", FORKING, str(model), engine, str(photos / "red.jpg")]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def test_a_forked_process_does_not_wait_for_threads_of_its_parent(
    colours: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(colours)
    with classifier._sessions.take(classifier.session):  # another thread classifies
        process = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: process + 1)
        assert classifier(photos / "red.jpg").label == "红"


def test_an_answer_has_its_own_labels_while_another_thread_teaches(model: Path) -> None:
    """The label of a later class may come before those of earlier classes."""
    classifier, pixels = Classifier(model), scene_pictures(1, seed=3)[0]
    classifier.teach("scene", list(scene_pictures(20, seed=1)))
    output = classifier.infer(pixels)
    classifier.teach("a class", list(scene_pictures(3, seed=2)[:, ::-1]))
    assert classifier.labels[3:] == ("a class", "scene")
    assert classifier.to_prediction("", output, 0.0).label == "scene"


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((48, 64), 255, np.int32),
        np.full((48, 64), np.nan, np.float32),
        np.full((48, 64), 200, np.uint16),
        np.full((48, 64, 2), 255, np.uint8),
    ],
)
def test_an_array_of_another_kind_is_refused_and_not_taken_for_black(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]], colours: Path
) -> None:
    with pytest.raises(PictureError, match=r"is an array .*: give .* an array uint8 \[H, W, 3\]"):
        Classifier(colours)(pixels)  # type: ignore[arg-type]


def test_a_single_source_is_not_taken_for_several(colours: Path, photos: Path) -> None:
    classifier, pixels = Classifier(colours), np.zeros((48, 64, 3), np.uint8)
    for source in (str(photos / "red.jpg"), (photos / "red.jpg").read_bytes(), pixels):
        with pytest.raises(TypeError, match="in a list"):
            classifier.predict_many(source)  # type: ignore[arg-type]
    assert len(list(classifier.predict_many(np.stack([pixels, pixels])))) == 2


def test_an_open_file_is_named_in_a_program_without_standard_input(
    colours: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as in pythonw.exe
    with (photos / "red.jpg").open("rb") as file:
        assert Classifier(colours)(file).source == str(photos / "red.jpg")


BreakEngines = Callable[..., None]
REASON = "libatomic.so.1: cannot open shared object file"


@pytest.fixture
def break_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BreakEngines:
    """Replaces the packages of the engines with ones that are installed, but cannot be imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)

    def replace_packages(*names: str) -> None:
        for name in names:
            (tmp_path / f"broken_{name}").mkdir()
            (tmp_path / f"broken_{name}" / "__init__.py").write_text(f"raise OSError({REASON!r})")
            monkeypatch.setitem(ENGINES, name, replace(ENGINES[name], module=f"broken_{name}"))

    return replace_packages


def test_auto_replaces_an_engine_that_cannot_be_imported(colours: Path, break_engines: BreakEngines) -> None:
    break_engines("litert", "onnx")
    classifier = Classifier(colours)
    assert (classifier.session.name, classifier.model.format) == ("openvino", "onnx")
    assert classifier.engine_problem.count(REASON) == 2 and "openvino runs" in classifier.engine_problem
    with pytest.raises(EngineError, match=f"litert is installed, but cannot be imported .{REASON}"):
        Classifier(colours, engine="litert")


def test_without_another_engine_the_first_one_is_the_error(
    colours: Path, break_engines: BreakEngines
) -> None:
    break_engines(*ENGINES)
    with pytest.raises(EngineError, match=f"is installed, but cannot be imported .{REASON}"):
        Classifier(colours)
    with pytest.raises(EngineError, match="litert is installed, but cannot be imported"):
        Classifier(colours / "colours_dynamic.tflite")


def test_auto_replaces_the_measured_engine_that_cannot_be_imported(
    colours: Path, break_engines: BreakEngines
) -> None:
    break_engines("openvino")
    files = choose_model(colours).candidates
    onnx = next(file for file in files if file.format == "onnx")
    save_selection(files, EngineSelection(onnx.sha256, "openvino", 1, 2.6, "2026-11-26T12:00:00Z"))
    classifier = Classifier(colours)
    assert classifier.session.name == "litert" and "openvino" in classifier.engine_problem


def test_engines_are_not_timed_while_the_measured_one_cannot_be_imported(
    colours: Path, break_engines: BreakEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored measurement would stay, and each start would time the engines and open the model again."""
    monkeypatch.delenv(engine_timing.VARIABLE)
    break_engines("openvino")
    files = choose_model(colours).candidates
    onnx = next(file for file in files if file.format == "onnx")
    save_selection(files, EngineSelection(onnx.sha256, "openvino", 1, 2.6, "2026-11-26T12:00:00Z"))
    ReloadingClassifier(colours)
    assert not any(thread.name == "engine-timing" for thread in threading.enumerate())


def test_a_service_reports_a_replaced_engine(colours: Path, break_engines: BreakEngines) -> None:
    break_engines("litert")
    events: list[str] = []
    ReloadingClassifier(colours, on_event=events.append)
    assert events[0].startswith("warning: litert is installed") and "onnx runs instead" in events[0]


def test_a_command_reports_a_replaced_engine_in_one_line(colours: Path, photos: Path, tmp_path: Path) -> None:
    for engine in ("litert", "onnx"):  # the first one, whatever the processor
        (tmp_path / ENGINES[engine].module).mkdir()
        (tmp_path / ENGINES[engine].module / "__init__.py").write_text(f"raise ImportError({REASON!r})")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    run = [sys.executable, "-m", "runtime.classify", str(photos / "red.jpg"), "--model", str(colours)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 0 and "红" in done.stdout
    assert line.startswith("warning: ") and REASON in line and line.endswith("openvino runs instead")
