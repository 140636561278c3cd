"""Every engine gives the same outputs for a file; a missing engine names its install command."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import Classifier
from runtime.common.errors import EngineError, ModelError
from runtime.inference import engines
from runtime.inference.engines import (
    ENGINES,
    choose_engine,
    engine_version,
    install_hint,
    load_session,
    require_engine,
)
from runtime.model_file.files import CONTRACT_NAME
from runtime.model_file.loader import open_model
from tests.runtime.conftest import EACH_ENGINE, LABELS, MakeFolder, needs_tflite
from tests.runtime.make_models import SIDE
from tests.runtime.scene import compute_known


# tflite-runtime cannot read a signature where TensorFlow is loaded, as other tests do in this process.
def in_process(engine: str, path: Path, changes: dict[str, object], *colours: tuple[int, int, int]) -> Any:
    """Loads the file, its contract changed, in a process of its own: the outputs for plain pictures."""
    code = """
import json, sys
from dataclasses import replace
import numpy as np
from runtime.common.errors import UserError
from runtime.inference.engines import load_session
from runtime.model_file.loader import open_model

engine, path, changes, colours = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
model = open_model(path)
try:
    run = load_session(replace(model, contract=replace(model.contract, **changes)), engine, threads=1)
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
height, width = model.contract.input_size
answers = [run(np.full((1, height, width, 3), colour, np.uint8)) for colour in colours]
dtypes = {str(output.dtype) for answer in answers for output in answer.values()}
outputs = [{name: output.tolist() for name, output in answer.items()} for answer in answers]
print(json.dumps({"engine": run.engine, "dtypes": sorted(dtypes), "outputs": outputs}))
"""
    command = [sys.executable, "-c", code, engine, str(path), json.dumps(changes), json.dumps(colours)]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.splitlines()[-1]


def file_for(engine: str, folder: Path) -> Path:
    return folder / f"colours_float32.{ENGINES[engine].format}"


RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_outputs_are_returned_by_name(engine: str, colours: Path) -> None:
    result = in_process(engine, file_for(engine, colours), {}, RED, GREEN, BLUE)
    assert result["engine"].startswith(f"{engine} ") and result["dtypes"] == ["float32"]
    for outputs, label in zip(result["outputs"], ("红", "grün", "blau"), strict=True):
        assert list(outputs) == ["probabilities"]
        (probabilities,) = outputs["probabilities"]
        assert len(probabilities) == 3 and sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities[LABELS.index(label)] > 0.99


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_known_is_returned_when_the_file_has_it(engine: str, knowing: Path) -> None:
    white, black, red = in_process(engine, file_for(engine, knowing), {}, WHITE, BLACK, RED)["outputs"]
    assert white["known"][0][0] > 0.9 and black["known"][0][0] < 0.1
    assert red["probabilities"][0][LABELS.index("红")] > 0.99


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_features_are_returned_and_checked_against_the_contract(
    engine: str, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    folder = make_scene_model(tmp_path / "quarters")
    path = folder / f"quarters_float32.{ENGINES[engine].format}"
    red, white = in_process(engine, path, {}, RED, WHITE)["outputs"]
    assert red.keys() == {"probabilities", "known", "features"}
    assert red["features"][0] == pytest.approx(4 * [1, 0, 0])
    assert white["known"][0][0] == pytest.approx(compute_known(np.ones((1, 12))).item())
    result = in_process(engine, path, {"features": 13}, RED)
    assert result.startswith("ModelError") and "12] as features, its contract says float32 [1, 13]" in result


@pytest.mark.parametrize("engine", ["litert", pytest.param("tflite", marks=needs_tflite)])
def test_without_a_tflite_signature_the_tensor_names_are_used(
    engine: str, knowing: Path, tmp_path: Path
) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model = open_model(file_for(engine, knowing))
    fields = schema.ModelT.InitFromPackedBuf(model.data)
    fields.signatureDefs = []
    builder = Builder()
    builder.Finish(fields.Pack(builder), b"TFL3")
    path = tmp_path / "nameless.tflite"
    path.write_bytes(builder.Output())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CONTRACT_NAME, model.contract.to_json())
    (red,) = in_process(engine, path, {}, RED)["outputs"]
    assert red.keys() == {"probabilities", "known"}
    assert red["probabilities"][0][LABELS.index("红")] > 0.99


@pytest.mark.parametrize(("name", "size"), [("probabilities", 2**21), ("", 2**29)])
def test_a_tflite_file_that_declares_a_large_tensor_is_refused_before_memory_is_allocated(
    name: str, size: int, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert import interpreter

    from export.flatbuffer import pack, unpack

    model = open_model(file_for("litert", colours))
    fields = unpack(model.data)
    graph = fields.subgraphs[0]
    outputs = set(graph.outputs)
    at = graph.outputs[0] if name else next(i for i in range(len(graph.tensors)) if i not in outputs)
    graph.tensors[at].shape = [1, size]

    def allocate(self: object) -> None:
        raise AssertionError("memory is allocated")

    monkeypatch.setattr(interpreter.Interpreter, "allocate_tensors", allocate)
    with pytest.raises(EngineError, match=rf"declares a tensor of {size:,} values") as error:
        load_session(replace(model, data=pack(fields)), "litert")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_a_file_that_differs_from_its_contract_raises_model_error(
    engine: str, colours: Path, knowing: Path
) -> None:
    for path, changes, reason in (
        (
            colours,
            {"labels": ["a", "b"]},
            "3] as probabilities, its contract says float32 [1, 2]",
        ),
        (colours, {"input_size": [224, 224]}, "its contract says uint8 [1, 224, 224, 3]"),
        (knowing, {"thresholds": {}}, "its contract has no threshold"),
    ):
        result = in_process(engine, file_for(engine, path), changes)
        assert result.startswith("ModelError") and reason in result


def constant(
    dtype: int, sides: list[int], declared: list[int] | None = None, name: str = "probabilities"
) -> Any:
    """An ONNX output that is all ones, or declares other sides."""
    ones = helper.make_tensor("ones", dtype, sides, [1] * math.prod(sides))
    node = helper.make_node("Constant", [], [name], value=ones)
    return node, helper.make_tensor_value_info(name, dtype, sides if declared is None else declared)


def onnx_of(
    *outputs: tuple[onnx.NodeProto, onnx.ValueInfoProto], nodes: Sequence[onnx.NodeProto] = ()
) -> bytes:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    # OpenVINO drops an input that no output depends on.
    copy = helper.make_node("Identity", ["image"], ["copy"])
    infos = [info for _, info in outputs]
    infos += [helper.make_tensor_value_info("copy", TensorProto.UINT8, [1, SIDE, SIDE, 3])]
    graph = helper.make_graph([*nodes, *(node for node, _ in outputs), copy], "graph", [image], infos)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(made.SerializeToString())


FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([constant(FLOAT, [])], "returns float32 [] as probabilities"),
        ([constant(FLOAT, [1, 1, 1, 3])], "returns float32 [1, 1, 1, 3] as probabilities"),
        ([constant(FLOAT, [2, 3])], "returns float32 [2, 3] as probabilities"),
        ([constant(TensorProto.INT64, [1, 3])], "returns int64 [1, 3] as probabilities"),
        ([constant(TensorProto.FLOAT16, [1, 3])], "returns float16 [1, 3] as probabilities"),
        ([constant(FLOAT, [1, 3], name="other")], "returns nothing as probabilities"),
        ([constant(FLOAT, [1, 3])], "returns nothing as known"),  # which its contract has a threshold for
        ([constant(FLOAT, [1, 3]), constant(FLOAT, [1, 2], name="known")], "returns float32 [1, 2] as known"),
    ],
)
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_outputs_that_differ_from_the_contract_raise_model_error(
    engine: str, outputs: list[Any], reason: str, knowing: Path
) -> None:
    model = replace(open_model(knowing, ["onnx"]), data=onnx_of(*outputs))
    with pytest.raises(ModelError, match=re.escape(reason)) as caught:
        load_session(model, engine)
    assert "\n" not in str(caught.value)


def test_a_wrong_shape_at_inference_raises_engine_error_in_one_line(
    colours: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Six numbers in as many rows as the picture is bright, where the file says three a row."""
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["numbers"], ["rows"], axes=[1, 2, 3], keepdims=0),
        constant(TensorProto.INT64, [1], name="minus")[0],
        helper.make_node("Neg", ["minus"], ["rest"]),
        helper.make_node("Concat", ["rows", "rest"], ["shape"], axis=0),
        constant(FLOAT, [6], name="six")[0],
    ]
    info = helper.make_tensor_value_info("probabilities", FLOAT, [-1, 3])
    output = helper.make_node("Reshape", ["six", "shape"], ["probabilities"]), info
    run = load_session(replace(open_model(colours, ["onnx"]), data=onnx_of(output, nodes=nodes)), "onnx")
    for bright, reason in (
        (2, r"returned probabilities of shape \[2, 3\], but .* \[-1, 3\]"),
        (1, r"returned probabilities of shape \[1, 6\]"),
        (7, "cannot run this model: .*Reshape"),
    ):
        with pytest.raises(EngineError, match=rf"^onnx [\d.]+ {reason}") as caught:
            run(np.full((1, SIDE, SIDE, 3), bright, np.uint8))
        assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


@pytest.mark.parametrize("engine", EACH_ENGINE)
@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x18\0\0\0TFL3" + bytes(200), bytes(1000)])
def test_bytes_that_are_not_a_model_raise_engine_error_in_one_line(
    engine: str, data: bytes, colours: Path
) -> None:
    model = replace(open_model(colours, [ENGINES[engine].format]), data=data)
    with pytest.raises(EngineError, match="cannot load it") as caught:
        load_session(model, engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_a_signal_is_handled_after_another_thread_freed_a_model(engine: str, colours: Path) -> None:
    """As when a service takes up a new model, and systemd stops it later."""
    code = """
import gc, os, signal, sys, threading
from runtime.inference.engines import load_session
from runtime.model_file.loader import open_model

engine, path, model_format = sys.argv[1:]
kept = [load_session(open_model(path, [model_format]), engine)]
thread = threading.Thread(target=lambda: (kept.clear(), gc.collect()))
thread.start(), thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, engine, str(colours), ENGINES[engine].format]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_engine_that_cannot_start_names_the_next_step(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(colours, ["onnx"])
    for threads in (-1, 10**5, 1.5):
        with pytest.raises(EngineError, match="from 1 to 1,024"):
            load_session(model, "onnx", threads)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # its import fails
    monkeypatch.setattr(engines, "require_engine", lambda engine: None)
    with pytest.raises(EngineError, match=r"cannot be imported .*install it again"):
        load_session(model, "onnx")
    # A clone of an engine's source code in the current folder is no engine.
    (tmp_path / "engine_source").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "onnx", replace(ENGINES["onnx"], module="engine_source"))
    assert find_spec("engine_source") and not engines.is_installed("onnx")


def test_an_engine_for_another_format_raises_engine_error(colours: Path) -> None:
    with pytest.raises(EngineError, match="onnx runs onnx files, not tflite"):
        load_session(open_model(colours, ["tflite"]), "onnx")


def test_auto_takes_the_first_installed_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("tflite") == "litert"
    assert choose_engine("onnx") == "onnx"
    monkeypatch.setattr(engines, "is_installed", lambda engine: engine != "litert")
    assert choose_engine("tflite") == "tflite"
    monkeypatch.setattr(engines, "is_installed", lambda engine: False)
    with pytest.raises(EngineError, match=r"no engine for onnx files .* pip install '\.\[onnx\]'"):
        choose_engine("onnx")
    with pytest.raises(EngineError, match=r"litert \(ai_edge_litert\) is not installed: .*pip install"):
        require_engine("litert")


def test_without_litert_auto_prefers_onnx_to_tflite(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tflite-runtime's int8 was measured at several times ONNX Runtime's on x86."""
    hidden = {ENGINES["litert"].module}
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name in hidden else find_spec(name))
    classifier = Classifier(colours)
    assert classifier.session.name == "onnx" and classifier.model.format == "onnx"
    assert classifier.engine_reason.startswith("auto: onnx, by rule: the first installed of litert, onnx")


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_an_engines_version_is_read_without_importing_it(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from runtime.inference.engines import engine_version; "
        "print(engine_version(sys.argv[1]), *sys.modules)"
    )
    run = [sys.executable, "-c", code, engine]
    result, *modules = subprocess.run(run, capture_output=True, check=True, text=True).stdout.split()
    assert result == metadata.version(ENGINES[engine].module) and ENGINES[engine].module not in modules
    package = tmp_path / ENGINES[engine].module
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, ENGINES[engine].module, raising=False)
    assert engine_version(engine) == str((package / "__init__.py").stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("machine", "system", "python", "bits", "asked", "answer"),
    [
        ("x86_64", "linux", (3, 11), 64, ("tflite", None), "pip install '.[litert]'"),
        ("x86_64", "linux", (3, 11), 64, ("tflite", "tflite"), "pip install '.[tflite]'"),
        (
            "x86_64",
            "linux",
            (3, 13),
            64,
            ("tflite", "tflite"),
            "pip install '.[litert]'",
        ),
        (
            "arm64",
            "darwin",
            (3, 11),
            64,
            ("tflite", "tflite"),
            "pip install '.[litert]'",
        ),
        ("AMD64", "win32", (3, 12), 64, ("onnx", None), "pip install '.[onnx]'"),
        ("aarch64", "linux", (3, 13), 64, ("tflite", None), "pip install '.[litert]'"),
        ("armv7l", "linux", (3, 11), 32, ("tflite", None), "pip install '.[tflite]'"),
        ("armv7l", "linux", (3, 13), 32, ("tflite", None), "use a 64-bit Raspberry Pi OS"),
        ("armv7l", "linux", (3, 11), 32, ("onnx", None), "use a 64-bit Raspberry Pi OS"),
        # A 32-bit system on a 64-bit kernel, as Raspberry Pi OS had it for years.
        ("aarch64", "linux", (3, 11), 32, ("tflite", None), "pip install '.[tflite]'"),
    ],
)
def test_the_install_hint_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    system: str,
    python: tuple[int, int],
    bits: int,
    asked: tuple[str, str | None],
    answer: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(sys, "maxsize", 2 ** (bits - 1) - 1)
    result = install_hint(*asked)
    monkeypatch.undo()
    assert answer in result


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_the_same_picture_gets_the_same_answer_bit_for_bit(
    engine: str, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    folder = make_scene_model(tmp_path / "quarters")
    path = folder / f"quarters_float32.{ENGINES[engine].format}"
    results = [in_process(engine, path, {}, RED, BLUE, RED)["outputs"] for _ in range(2)]
    assert results[0] == results[1] and results[0][0] == results[0][2] != results[0][1]


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_an_engine_sends_no_reports(engine: str, colours: Path, tmp_path: Path) -> None:
    """OpenVINO and ONNX Runtime do by default: they store an identifier in the home folder, and send it."""
    code = """
import os, sys
seen = []
watched = {"socket.__new__", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "os.posix_spawn"}
def watch(event, arguments):
    if event in watched or (event == "open" and set("wax+") & set(str(arguments[1]))):
        seen.append((event, str(arguments[:2])))
sys.addaudithook(watch)
from runtime import Classifier
import numpy as np
Classifier(sys.argv[1], engine=sys.argv[2])(np.zeros((8, 8, 3), np.uint8))
found = list(seen)
import socket
socket.socket()
assert len(seen) > len(found)
print(found)
"""
    # The engines send none where a variable says that this is continuous integration.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    run = [sys.executable, "-c", code, str(colours), engine]
    done = subprocess.run(run, capture_output=True, check=True, text=True, env=environment)
    assert done.stdout.strip() == "[]" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_only_one_engine_and_no_training_library_is_imported(engine: str, colours: Path) -> None:
    """And nothing that trains or exports, at any depth."""
    code = (
        "import sys; from runtime import Classifier; Classifier(sys.argv[1], engine=sys.argv[2]); "
        "print(*{name.split('.')[0] for name in list(sys.modules)})"
    )
    run = [sys.executable, "-c", code, str(colours), engine]
    modules = set(subprocess.run(run, capture_output=True, check=True, text=True).stdout.split())
    assert modules & {
        *(each.module for each in ENGINES.values()),
        "tensorflow",
        "keras",
        "tf2onnx",
        "onnx",
        "train",
        "export",
    } == {ENGINES[engine].module}
