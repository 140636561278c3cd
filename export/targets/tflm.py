"""The target `tflm`: TFLite Micro, the interpreter for microcontrollers without a neural processor."""

from __future__ import annotations

import io
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

from export.operators import file_operators
from export.parity.runner import compare_outputs
from export.targets.target import CompiledTarget, Step, TargetInput, megabytes
from export.targets.tflm_sources import example, header, model_source
from export.targets.worker import run_compiled
from runtime.common.errors import UserError
from runtime.common.packages import install_command

ARENA_RESERVE = 1.05  # a library of another version, with other kernels, needs a little more or less


def check_tflm(python: Path) -> None:
    """Raises UserError when TFLite Micro's interpreter is not installed."""
    if find_spec("tflite_micro") is None:
        raise UserError(f"tflite-micro is not installed: {install_command('tflm')}")


def build_tflm(source: TargetInput, step: Step) -> CompiledTarget:
    """The model as a C array with a header, and an example that calls it. Raises EngineError."""
    data = without_zip(source.data)
    outputs, facts = run_compiled("tflm", {"model.tflite": data}, source.reference.photos, step)
    arena = int(facts["arena"] * ARENA_RESERVE) // 1024 * 1024 + 1024
    kinds = operator_names(data)
    headed, has_known = source.file_name(".h"), source.reference.known is not None
    return CompiledTarget(
        target=source.name,
        compiler=outputs.engine,
        files={
            source.file_name(".cc"): model_source(data, headed, source.contract.labels).encode(),
            headed: header(source.contract, len(data), arena).encode(),
            source.file_name("_example.cc"): example(headed, kinds, has_known).encode(),
        },
        report={
            "arena (RAM)": f"{megabytes(facts['arena'])}, found by trying on this computer",
            "model (flash)": megabytes(len(data)),
            "kinds of operator": f"{len(kinds)}: {', '.join(kinds)}",
        },
        parity=compare_outputs(source.file, data, outputs.engine, [outputs], source.reference),
        compared_in=f"{outputs.engine} on this computer",
    )


def without_zip(data: bytes) -> bytes:
    """A .tflite without the zip archive behind its tables, which a microcontroller does not read."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return data[: min(entry.header_offset for entry in archive.infolist())]


def operator_names(data: bytes) -> list[str]:
    """The kinds of operator of a .tflite, as TFLite Micro's resolver names them: Conv2D, MaxPool2D, …"""
    return sorted(map(_camel_case, file_operators("tflite", data)))


def _camel_case(name: str) -> str:
    """CONV_2D → Conv2D, FULLY_CONNECTED → FullyConnected."""
    words = name.split("_")
    return "".join(word if re.match(r"\d", word) else word.capitalize() for word in words)
