"""The targets `ethos-u…`: Arm's neural processors for microcontrollers, compiled with Arm's Vela.

PyPI has no simulator of them, so the parity is that of the file before compilation.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from export.targets.target import CompiledTarget, Step, TargetInput
from export.tempdir import temporary_dir
from runtime.common.errors import UserError
from runtime.common.packages import install_command

MIN_NPU_MACS = 0.995  # share of the multiplications that the neural processor must compute: all convolutions
# The short names stand for sizes that boards have; the number is that of multiplications per cycle.
SHORT_NAMES = {"ethos-u55": "ethos-u55-128", "ethos-u65": "ethos-u65-256", "ethos-u85": "ethos-u85-256"}
SIZES = {"ethos-u55": (32, 64, 128, 256), "ethos-u65": (256, 512), "ethos-u85": (128, 256, 512, 1024, 2048)}
CONFIGURATIONS = SHORT_NAMES | {
    name: name for name in (f"{series}-{macs}" for series, sizes in SIZES.items() for macs in sizes)
}  # of Vela, by the name of the target
_MEMORIES = {"sram": "SRAM", "dram": "DRAM", "on_chip_flash": "on-chip flash", "off_chip_flash": "flash"}
_REPORT_NEEDED = ("nn_macs", "inference_time", "core_clock", "memory_mode")


@dataclass(frozen=True)
class VelaReport:
    """The figures that Vela prints and writes to its summary."""

    npu_operators: int
    cpu_operators: int
    npu_macs: int
    memory: Mapping[str, float]  # MB by the kind of memory
    milliseconds: float  # of the neural processor, estimated
    mhz: float
    memory_mode: str


def check_vela(python: Path) -> None:
    """Raises UserError when Vela is not installed."""
    if find_spec("ethosu") is None:
        raise UserError(f"ethos-u-vela is not installed: {install_command('vela')}")


def build_ethos_u(source: TargetInput, step: Step) -> CompiledTarget:
    """The .tflite that Vela compiles for the size of the processor in CONFIGURATIONS. Raises UserError.

    Its figures are those of the file before compilation, which the export has measured.
    """
    from export.macs import count_macs  # loads onnx

    configuration = CONFIGURATIONS[source.name]
    data, report = compile_with_vela(source.data, configuration)
    share = min(report.npu_macs / count_macs(source.data, "tflite"), 1.0)  # Vela also counts means
    operators = report.npu_operators + report.cpu_operators
    return CompiledTarget(
        target=source.name,
        compiler=f"ethos-u-vela {version('ethos-u-vela')} for {configuration}",
        files={source.file_name(".tflite"): data},
        report={
            "operators on the NPU": f"{report.npu_operators} of {operators}",
            "multiplications on the NPU": f"{share:.1%}",
            "memory": ", ".join(f"{name} {size:.2f} MB" for name, size in report.memory.items()),
            "latency": f"{report.milliseconds:.1f} ms: an estimate by Vela, for {report.mhz:.0f} MHz and the "
            f"memory mode {report.memory_mode}, without the operators on the CPU",
        },
        parity=next(result for result in source.results if result.file == source.file),
        compared_in="the file before compilation; PyPI has no simulator of this processor",
        broken=tuple(broken_compilation(source.data, data, share)),
    )


def compile_with_vela(data: bytes, configuration: str) -> tuple[bytes, VelaReport]:
    """A .tflite compiled for a configuration of Vela, and the report. Raises UserError when Vela fails."""
    with temporary_dir() as folder:
        model = folder / "model.tflite"
        model.write_bytes(data)
        command = [sys.executable, "-m", "ethosu.vela", str(model), "--output-dir", str(folder)]
        done = subprocess.run(
            [*command, "--accelerator-config", configuration],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        summaries, compiled = list(folder.glob("*_summary_*.csv")), folder / "model_vela.tflite"
        if done.returncode or not summaries or not compiled.exists():
            reason = (done.stdout.strip().splitlines() or ["no message"])[-1][:300]
            raise UserError(
                f"ethos-u-vela cannot compile this model: {reason}; report it with Vela's version"
            )
        with summaries[0].open(newline="", encoding="utf-8") as file:
            summary = next(csv.DictReader(file))
        return compiled.read_bytes(), _report(done.stdout, summary)


def broken_compilation(source: bytes, compiled: bytes, npu_macs: float) -> list[str]:
    """The bounds that a compiled file breaks: the share of multiplications on the NPU, and the signature."""
    broken = []
    if not npu_macs >= MIN_NPU_MACS:
        broken.append(f"{npu_macs:.1%} of the multiplications run on the NPU, under {MIN_NPU_MACS:.1%}")
    before, after = _signature(source), _signature(compiled)
    if before != after:
        broken.append(f"the compiled file has the tensors {after}, not {before}")
    return broken


def _report(printed: str, summary: Mapping[str, str]) -> VelaReport:
    counts = {
        kind: int(count) for kind, count in re.findall(r"^(CPU|NPU) operators = (\d+)", printed, re.MULTILINE)
    }
    missing = [name for name in _REPORT_NEEDED if name not in summary]
    if missing or counts.keys() != {"CPU", "NPU"}:
        raise UserError(
            f"the report of ethos-u-vela {version('ethos-u-vela')} has another form than that of version 5; "
            f"install the extra again: {install_command('vela')}"
        )
    sizes = {label: 1024 * float(summary[f"{name}_memory_used"]) / 1e6 for name, label in _MEMORIES.items()}
    return VelaReport(
        npu_operators=counts["NPU"],
        cpu_operators=counts["CPU"],
        npu_macs=int(summary["nn_macs"]),
        memory={label: size for label, size in sizes.items() if size},
        milliseconds=1000 * float(summary["inference_time"]),
        mhz=float(summary["core_clock"]) / 1e6,
        memory_mode=summary["memory_mode"],
    )


def _signature(data: bytes) -> list[str]:
    """The input and the outputs of a .tflite: names, types and shapes."""
    from ai_edge_litert import schema_py_generated as schema  # here, because it takes 0.2 s to load

    from export.flatbuffer import unpack

    graph = unpack(data).subgraphs[0]
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if name.isupper()}
    tensors = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    return [f"{tensor.name.decode()} {types[tensor.type]} {tensor.shape.tolist()}" for tensor in tensors]
