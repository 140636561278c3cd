"""TFLite Micro: its interpreter agrees, and the C++ files hold the model."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from export.parity.gates import FAILED
from export.targets.stage import ExportedModel
from export.targets.tflm import operator_names, without_zip
from export.targets.tflm_sources import example, header, model_source
from tests.export.targets.conftest import Build, require
from tests.export.targets.damage import damaged_tflite
from tests.helpers import RELEASED, make_contract
from tests.programs import require_program

LABELS = ("daisy", 'dent "de" lion\\', "バラ")

# The declarations of TFLite Micro that the example uses, as in its repository; all files include this one.
STUBS = """
#pragma once
#include <cstddef>
#include <cstdint>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
union TfLitePtrUnion { float* f; std::uint8_t* uint8; };
struct TfLiteTensor { TfLitePtrUnion data; };
void MicroPrintf(const char* format, ...);
namespace tflite {
struct Model;
const Model* GetModel(const void* buffer);
struct MicroOpResolver {};
template <unsigned int count> struct MicroMutableOpResolver : MicroOpResolver {
  TfLiteStatus AddConv2D(); TfLiteStatus AddFullyConnected(); TfLiteStatus AddMaxPool2D();
};
class MicroInterpreter {
 public:
  MicroInterpreter(const Model*, const MicroOpResolver&, std::uint8_t* arena, std::size_t bytes);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(std::size_t index);
  TfLiteTensor* output(std::size_t index);
};
}
"""
INCLUDED = (
    "tensorflow/lite/micro/micro_interpreter.h",
    "tensorflow/lite/micro/micro_log.h",
    "tensorflow/lite/micro/micro_mutable_op_resolver.h",
    "tensorflow/lite/schema/schema_generated.h",
)


@pytest.fixture
def compiler() -> str:
    return require_program("g++", "g++")


@pytest.mark.slow
def test_the_interpreter_agrees(build: Build, exported: ExportedModel) -> None:
    require("tflm")
    compiled = build("tflm")
    assert compiled.failures == [] and compiled.verdict != FAILED
    assert list(compiled.files) == ["small_tflm.cc", "small_tflm.h", "small_tflm_example.cc"]
    arena = float(compiled.report["arena (RAM)"].split()[0]) * 1e6
    (declared,) = re.findall(r"kArenaBytes = (\d+);", compiled.files["small_tflm.h"].decode())
    assert 1 < int(declared) / arena < 1.3
    model = without_zip(exported.files["tflite", "full_int8"])
    array = re.findall(r"^[\d,]+$", compiled.files["small_tflm.cc"].decode(), re.MULTILINE)
    assert bytes(map(int, "".join(array).rstrip(",").split(","))) == model


@pytest.mark.slow
def test_damaged_weights_fail(build: Build, exported: ExportedModel) -> None:
    require("tflm")
    compiled = build("tflm", damaged_tflite(exported.files["tflite", "full_int8"]))
    assert compiled.verdict == FAILED and "over" in compiled.failures[0]


def test_operators_have_the_names_of_the_resolver() -> None:
    names = operator_names((RELEASED / "flowers_int8.tflite").read_bytes())
    assert {"Conv2D", "MaxPool2D", "FullyConnected", "Softmax"} <= set(names)


def test_the_zip_archive_is_left_out() -> None:
    data = (RELEASED / "flowers_int8.tflite").read_bytes()
    model = without_zip(data)
    assert data[len(model) :].startswith(b"PK\x03\x04") and data.startswith(model)


def test_a_program_reads_the_model_and_the_labels(compiler: str, tmp_path: Path) -> None:
    data = bytes(range(256))
    contract = make_contract("small", LABELS, 32)
    (tmp_path / "small.h").write_text(header(contract, len(data), 2048))
    (tmp_path / "small.cc").write_text(model_source(data, "small.h", LABELS))
    (tmp_path / "main.cc").write_text(
        '#include "small.h"\n#include <cstdio>\nint main() {\n'
        "for (auto label : vgg_edge::kLabels) std::puts(label);\n"
        "std::fwrite(vgg_edge::kModel, 1, sizeof(vgg_edge::kModel), stdout); }\n"
    )
    program = tmp_path / "program"
    command = [compiler, "-std=c++17", "-Wall", "-Werror", "-o", program]
    subprocess.run([*command, tmp_path / "main.cc", tmp_path / "small.cc"], check=True)
    printed = subprocess.run([program], capture_output=True, check=True).stdout
    assert printed == "".join(f"{label}\n" for label in LABELS).encode() + data


@pytest.mark.parametrize("has_known", [True, False])
def test_the_example_is_valid_cpp(has_known: bool, compiler: str, tmp_path: Path) -> None:
    contract = make_contract("small", LABELS, 32)
    if has_known:
        contract.thresholds["known"] = 0.5  # type: ignore[index]
    (tmp_path / "small.h").write_text(header(contract, 256, 2048))
    operators = ["Conv2D", "FullyConnected", "MaxPool2D"]
    (tmp_path / "example.cc").write_text(example("small.h", operators, has_known))
    (tmp_path / "stubs.h").write_text(STUBS)
    for name in INCLUDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'#include "{tmp_path}/stubs.h"\n')
    command = [compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", "-I", tmp_path]
    subprocess.run([*command, tmp_path / "example.cc"], check=True)
