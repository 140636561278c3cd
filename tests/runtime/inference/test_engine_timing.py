"""Where the engine was chosen by rule, all engines are timed, and the model continues in the fastest one.

The engines are real and prove themselves. Which one wins is set here: times on a busy machine prove nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtime import Classifier
from runtime.common import cpu_info
from runtime.inference import engine_timing, engines
from runtime.inference.classifier import predict_many
from runtime.inference.engine_cache import EngineSelection, load_selection, save_selection
from runtime.inference.engine_timing import MIN_GAIN, NOT_TIMED, SwitchingClassifier
from runtime.inference.model_proof import run_proof
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.contract import GoldenAnswer
from runtime.model_file.golden import golden_picture
from runtime.model_file.index import INDEX_NAME
from tests.helpers import PATIENCE, wait_for
from tests.runtime.conftest import MakeFolder, rewrite_index
from tests.runtime.scene import scene_pictures

TIMED = {"litert", "onnx"}
FILES = (("tflite", "float32"), ("onnx", "float32"))
SECONDS = 2 * PATIENCE  # each engine starts in a process of its own

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 {}\n"
PI_5 = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd0b\n"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Times two engines without a delay, in processes of normal priority."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(engine_timing.VARIABLE)
    monkeypatch.setattr(engine_timing, "DELAY", 0.0)
    monkeypatch.setattr(engine_timing, "NOT_TIMED", NOT_TIMED | {"openvino"})  # its import takes longest
    monkeypatch.setattr(engine_timing, "START", engine_timing.START.replace("nice(19)", "nice(0)"))


@pytest.fixture
def winner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets the measured times; `before` is called before each engine. Gives the engines that were run."""

    def win(engine: str, gain: float = 2.0, before: Callable[[], object] = lambda: None) -> list[str]:
        run = list[str]()

        def proof(start: str, path: Path, options: Mapping[str, Any], timeout: float) -> dict[str, Any]:
            before()
            result = run_proof(start, path, options, timeout)
            run.append(options["engine"])
            assert result["ms"] > 0 and options["threads"] == 1
            return {**result, "ms": 3.0 if options["engine"] == engine else 3.0 * gain}

        monkeypatch.setattr(engine_timing, "run_proof", proof)
        return run

    return win


@pytest.fixture
def folder(make_folder: MakeFolder, tmp_path: Path) -> Path:
    return make_folder(tmp_path / "colours", *FILES)


def is_timing() -> bool:
    return any(thread.name == "engine-timing" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def all_threads_end() -> Iterator[None]:
    yield
    wait_for(lambda: not is_timing(), SECONDS)


@pytest.mark.parametrize(
    ("cpuinfo", "engine"),
    [
        (X86.format("avx512f avx512_vnni"), "litert"),
        (X86.format("avx_vnni"), "litert"),
        (X86.format("avx512f"), "onnx"),
        (X86.format(""), "onnx"),
        (PI_5, "litert"),
        (None, "litert"),
    ],
    ids=["avx512_vnni", "avx_vnni", "avx512", "avx2", "pi-5", "unknown"],
)
def test_the_rule_depends_on_the_processor(
    cpuinfo: str | None, engine: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_info, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(engines, "is_x86_without_vnni", cpu_info.is_x86_without_vnni)
    if cpuinfo:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    classifier = Classifier(colours)
    assert classifier.session.name == engine
    assert classifier.model.format == {"litert": "tflite", "onnx": "onnx"}[engine]
    assert ("on x86 without VNNI the first installed of onnx" in classifier.engine_reason) == (
        engine == "onnx"
    )


def test_a_running_model_continues_in_the_fastest_engine(
    folder: Path, photos: Path, winner: Callable[..., list[str]]
) -> None:
    run, events, details = winner("onnx"), list[str](), list[str]()
    reloader = ReloadingClassifier(folder, on_event=events.append, on_detail=details.append)
    first = reloader.current()
    assert first.session.name == "litert"
    wait_for(lambda: bool(events), SECONDS)
    assert set(run) == TIMED and len(run) == len(TIMED)
    second = reloader.current()
    assert second.session.name == "onnx" and second(photos / "red.jpg").label == "红"
    assert events[0].startswith("engine switched: ") and " on onnx " in events[0] and len(events) == 1
    assert (
        len(details) == 1 and details[0].startswith("auto: onnx, timed 20") and "litert 6.0 ms" in details[0]
    )
    for _ in range(3):
        reloader.check()
        assert reloader.current() is second

    again = Classifier(folder)  # the next start
    assert again.session.name == "onnx" and again.engine_reason == details[0]
    ReloadingClassifier(folder)
    assert not is_timing() and len(run) == len(TIMED)


def test_a_benchmark_that_ends_meanwhile_is_kept(folder: Path, winner: Callable[..., list[str]]) -> None:
    candidates = Classifier(folder).unmeasured
    file = next(file for file in candidates if file.format == "onnx")
    measured = EngineSelection(file.sha256, "onnx", 1, 1.5, "2026-11-30T12:00:00Z")
    winner("litert", before=lambda: save_selection(candidates, measured))
    events = list[str]()
    reloader = ReloadingClassifier(folder, on_event=events.append)
    wait_for(lambda: bool(events), SECONDS)
    assert reloader.current().session.name == "onnx"
    assert load_selection(candidates) == measured


def test_a_small_gain_is_no_reason_to_switch(folder: Path, winner: Callable[..., list[str]]) -> None:
    winner("onnx", gain=MIN_GAIN - 0.01)
    details = list[str]()
    reloader = ReloadingClassifier(folder, on_detail=details.append)
    first = reloader.current()
    wait_for(lambda: bool(details), SECONDS)
    assert details[0].startswith("auto: litert, timed ") and "onnx 3.0 ms" in details[0]
    assert reloader.current() is first and reloader.last_event == ""
    assert Classifier(folder).engine_reason == details[0]


@pytest.mark.slow
def test_corrections_and_learned_classes_stay(
    model: Path, winner: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Classifier(model).teach("scene", list(scene_pictures(12, seed=1)))
    monkeypatch.setattr(engine_timing, "NOT_TIMED", NOT_TIMED)
    winner("openvino")
    events = list[str]()
    reloader = ReloadingClassifier(model, on_event=events.append)
    state = reloader.current().learned
    wait_for(lambda: bool(events), SECONDS)
    current = reloader.current()
    assert current.session.name == "openvino" and current.learned is state is not None
    answers = [current(pixels).answer for pixels in scene_pictures(10, seed=2)]
    assert answers.count("scene") >= 9
    reloader.check()
    assert reloader.current() is current


def test_an_engine_that_computes_another_answer_is_not_used(
    make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    good = Classifier(make_scene_model(tmp_path / "good"), engine="litert")
    output = good.infer_uncorrected(golden_picture(*good.model.contract.input_size))
    golden = GoldenAnswer(tuple(map(float, output.probabilities)), output.known)
    folder = make_scene_model(tmp_path / "quarters", golden=golden)
    file = folder / "quarters_float32.onnx"
    network = onnx.load(file)
    for node in network.graph.node:
        node.output[:] = ["right" if name == "probabilities" else name for name in node.output]
    rolled = onnx.helper.make_node("Gather", ["right", "order"], ["probabilities"], axis=1)
    network.graph.node.append(rolled)
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 0]), "order"))
    file.write_bytes(network.SerializeToString())

    def correct(index: dict[str, Any]) -> None:
        (listed,) = (listed for listed in index["files"] if listed["format"] == "onnx")
        listed |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    rewrite_index(folder, correct)
    details = list[str]()
    reloader = ReloadingClassifier(folder, on_detail=details.append)
    first = reloader.current()
    wait_for(lambda: bool(details) and not is_timing(), SECONDS)
    (line,) = details
    assert line.startswith("onnx is not timed: ") and "differs by" in line
    assert reloader.current() is first and first.session.name == "litert"


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, photos: Path, tmp_path: Path, winner: Callable[..., list[str]]
) -> None:
    (tmp_path / "cache").write_text("no folder")
    winner("onnx")
    events, details = list[str](), list[str]()
    reloader = ReloadingClassifier(folder, on_event=events.append, on_detail=details.append)
    wait_for(lambda: bool(events), SECONDS)
    assert " on onnx " in events[0] and "is not saved: " in details[0] and len(details) == 2
    second = reloader.current()
    assert second(photos / "red.jpg").label == "红"
    reloader.check()
    assert reloader.current() is second and Classifier(folder).session.name == "litert"


def test_a_model_that_is_replaced_meanwhile_is_not_switched(
    folder: Path, make_folder: MakeFolder, winner: Callable[..., list[str]]
) -> None:
    def swap() -> None:
        if not folder.with_name("old").exists():
            folder.rename(folder.with_name("old"))
            make_folder(folder, *FILES, labels=("blue", "green", "red"))

    run = winner("onnx", before=swap)
    switching = SwitchingClassifier(Classifier(folder), folder, {}, lambda line: None)
    first = switching.current()
    wait_for(lambda: set(run) == TIMED and not is_timing(), SECONDS)
    assert switching.current() is first
    assert isinstance(load_selection(first.unmeasured), str)


def test_photos_continue_in_the_fastest_engine(
    folder: Path, photos: Path, winner: Callable[..., list[str]]
) -> None:
    winner("onnx")
    first = Classifier(folder)
    switching = SwitchingClassifier(first, folder, {}, lambda line: None)

    def sources() -> Iterator[Path]:
        yield photos / "red.jpg"
        wait_for(lambda: switching.current() is not first, SECONDS)
        yield photos / "blue.png"

    labels = [getattr(result, "label", result) for _, result in predict_many(switching.current, sources())]
    assert labels == ["红", "blau"] and switching.current().session.name == "onnx"


def test_nothing_is_timed_where_there_is_no_choice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, winner: Callable[..., list[str]]
) -> None:
    run = winner("onnx")
    Classifier(folder)  # a library that classifies has no threads in the background
    ReloadingClassifier(folder, engine="litert")
    with monkeypatch.context() as patch:
        patch.setenv(engine_timing.VARIABLE, "off")
        ReloadingClassifier(folder)
    with monkeypatch.context() as patch:
        for module in (engines, engine_timing):
            patch.setattr(module, "is_installed", lambda engine: engine in ("litert", "tflite"))
        ReloadingClassifier(folder)
    (folder / INDEX_NAME).unlink()
    ReloadingClassifier(folder / "colours_float32.onnx")  # a file without model.json is not saved
    assert not is_timing() and run == []


def test_a_failure_of_the_timing_is_reported_and_the_engine_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(engine_timing, "run_proof", fail)
    details = list[str]()
    reloader = ReloadingClassifier(folder, on_detail=details.append)
    first = reloader.current()
    wait_for(lambda: bool(details))
    assert details == ["the engine stays: OSError: no more processes"] and reloader.current() is first


@pytest.mark.skipif(os.name != "posix", reason="priorities of POSIX")
def test_the_engines_run_at_the_lowest_priority_and_end_with_their_parent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    program = engine_timing.START.partition("from runtime")[0] + (
        "import json; print(json.dumps({'nice': os.nice(0), 'error': ''}))"
    )
    assert run_proof(program, folder, {}, PATIENCE)["nice"] == 19
    parents = iter([1, 1, 2])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(SystemExit):
        engine_timing._shortest_ms(Classifier(folder))


def test_damaged_cache_files_are_not_used(
    folder: Path, winner: Callable[..., list[str]], tmp_path: Path
) -> None:
    winner("onnx")
    reloader = ReloadingClassifier(folder)
    wait_for(lambda: bool(reloader.last_event), SECONDS)
    (path,) = (tmp_path / "cache" / "vgg-edge" / "fastest").iterdir()
    saved, files = json.loads(path.read_text()), Classifier(folder, engine="litert").unmeasured
    assert files == ()
    for others in ({"litert": float("nan")}, {"torch": 1.0}, {"litert": "1"}, [], "x"):
        path.write_text(json.dumps({**saved, "others": others}))
        assert Classifier(folder).engine_reason.startswith("auto: litert, by rule: "), others
