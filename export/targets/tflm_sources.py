"""The C++ files of the target `tflm`: the model as an array, its header, and an example."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.model_file.contract import Contract

_BYTES_PER_LINE = 24


def header(contract: Contract, model_bytes: int, arena_bytes: int) -> str:
    """The header: sizes, the labels and the model as names for a program."""
    height, width = contract.input_size
    known = contract.thresholds.get("known")
    threshold = (
        f"// Below this value of the output `known`, the picture shows none of the labels.\n"
        f"constexpr float kKnownThreshold = {known!r}f;\n"
        if known is not None
        else ""
    )
    return f"""\
// The model {_comment(contract.name)} for TFLite Micro, release {contract.release}.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vgg_edge {{

constexpr int kHeight = {height};  // of the picture: RGB, one byte per channel, stretched to this size
constexpr int kWidth = {width};
constexpr int kLabelCount = {len(contract.labels)};
constexpr std::size_t kArenaBytes = {arena_bytes};  // memory for TFLite Micro
{threshold}
extern const char* const kLabels[kLabelCount];
extern const unsigned char kModel[{model_bytes}];

}}  // namespace vgg_edge
"""


def model_source(data: bytes, header_name: str, labels: Sequence[str]) -> str:
    """The array with the model's bytes, and the labels in UTF-8."""
    rows = (data[start : start + _BYTES_PER_LINE] for start in range(0, len(data), _BYTES_PER_LINE))
    array = "\n".join(",".join(map(str, row)) + "," for row in rows)
    names = ", ".join(f'"{_c_string(label)}"' for label in labels)
    return f"""\
#include "{header_name}"

namespace vgg_edge {{

const char* const kLabels[kLabelCount] = {{{names}}};

alignas(16) const unsigned char kModel[{len(data)}] = {{
{array}
}};

}}  // namespace vgg_edge
"""


def example(header_name: str, operators: Sequence[str], has_known: bool) -> str:
    """A program with the functions `setup` and `loop` of Arduino: it prints the label of a picture."""
    added = "\n".join(f"  resolver.Add{name}();" for name in operators)
    known = (
        "  if (known->data.f[0] < vgg_edge::kKnownThreshold) {\n"
        '    MicroPrintf("unknown");\n'
        "    return;\n"
        "  }\n"
        if has_known
        else ""
    )
    declared = "  const TfLiteTensor* known = interpreter->output(1);\n" if has_known else ""
    return _EXAMPLE.format(
        header=header_name, count=len(operators), added=added, known=known, declared=declared
    )


_EXAMPLE = """\
// Prints the label of a picture. It needs the library TFLite Micro for your board.
// Replace ReadPicture by your camera's code.
#include "{header}"

#include <cstring>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

constexpr int kPictureBytes = vgg_edge::kHeight * vgg_edge::kWidth * 3;

// Too large for the internal memory of most boards: place it in external RAM (PSRAM, SDRAM).
alignas(16) std::uint8_t arena[vgg_edge::kArenaBytes];
tflite::MicroMutableOpResolver<{count}> resolver;
tflite::MicroInterpreter* interpreter = nullptr;

// Writes a picture of kHeight x kWidth pixels to `rgb`: red, green and blue of each pixel, 0 to 255.
void ReadPicture(std::uint8_t* rgb) {{ std::memset(rgb, 128, kPictureBytes); }}

}}  // namespace

void setup() {{
{added}
  static tflite::MicroInterpreter instance(tflite::GetModel(vgg_edge::kModel), resolver, arena,
                                           vgg_edge::kArenaBytes);
  if (instance.AllocateTensors() != kTfLiteOk) {{
    MicroPrintf("the arena of %d bytes is too small", static_cast<int>(vgg_edge::kArenaBytes));
    return;
  }}
  interpreter = &instance;
}}

void loop() {{
  if (interpreter == nullptr) return;
  ReadPicture(interpreter->input(0)->data.uint8);
  if (interpreter->Invoke() != kTfLiteOk) {{
    MicroPrintf("inference failed");
    return;
  }}
  const TfLiteTensor* probabilities = interpreter->output(0);
{declared}{known}  int best = 0;
  for (int i = 1; i < vgg_edge::kLabelCount; ++i) {{
    if (probabilities->data.f[i] > probabilities->data.f[best]) best = i;
  }}
  const int percent = static_cast<int>(100 * probabilities->data.f[best] + 0.5f);
  MicroPrintf("%s %d %%", vgg_edge::kLabels[best], percent);
}}
"""


def _c_string(text: str) -> str:
    """Text for a string literal: ASCII letters, digits and spaces as they are, all other bytes in octal."""
    return "".join(
        chr(byte) if byte < 128 and (chr(byte).isalnum() or byte == 32) else f"\\{byte:03o}"
        for byte in text.encode()
    )


def _comment(text: str) -> str:
    """Text for a comment of one line: a backslash at its end would join the next line."""
    return text.replace("\\", "/")
