"""The target `openvino`: OpenVINO's own format (IR), for C++ programs and model servers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.parity.runner import compare_outputs
from export.targets.target import CompiledTarget, Step, TargetInput, megabytes
from export.targets.worker import run_compiled
from export.tempdir import temporary_dir
from runtime.inference.engines import require_engine


def check_openvino(python: Path) -> None:
    """Raises EngineError when OpenVINO is not installed."""
    require_engine("openvino")


def build_openvino(source: TargetInput, step: Step) -> CompiledTarget:
    """The IR of an ONNX file for single pictures: an .xml with graph and labels, a .bin with weights."""
    xml, weights = _convert(source)
    names = source.file_name(".xml"), source.file_name(".bin")
    files = dict(zip(names, (xml, weights), strict=True))
    outputs, facts = run_compiled("openvino", files, source.reference.photos, step)
    parity = compare_outputs(source.file, xml + weights, outputs.engine, [outputs], source.reference)
    return CompiledTarget(
        target=source.name,
        compiler=outputs.engine,
        files=files,
        report={
            "weights": megabytes(len(weights)),
            "start": f"{facts['compile_ms'] / 1000:.1f} s on this computer",
            "latency": f"{np.median(outputs.ms):.1f} ms on this computer",
        },
        parity=parity,
        compared_in=f"{outputs.engine}, which reads the compiled file",
    )


def _convert(source: TargetInput) -> tuple[bytes, bytes]:
    """The .xml and the .bin."""
    import openvino

    model = openvino.Core().read_model(source.data)
    model.reshape([1, *source.reference.photos.shape[1:]])
    # The names of OpenVINO's Model API, whose labels are separated by spaces.
    model.set_rt_info("Classification", ["model_info", "model_type"])
    labels = " ".join(label.replace(" ", "_") for label in source.contract.labels)
    model.set_rt_info(labels, ["model_info", "labels"])
    model.set_rt_info(source.contract.to_json(), ["model_info", "contract"])
    with temporary_dir() as folder:
        path = folder / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
