"""The targets by name. A new target is one function and one line here."""

from __future__ import annotations

from export.parity.result import FileKey
from export.targets.ethos_u import CONFIGURATIONS, build_ethos_u, check_vela
from export.targets.openvino_ir import build_openvino, check_openvino
from export.targets.rk3588 import build_rk3588, check_rknn
from export.targets.target import Target
from export.targets.tflm import build_tflm, check_tflm

FULL_INT8 = FileKey("tflite", "full_int8")

TARGETS: dict[str, Target] = {
    "openvino": Target(FileKey("onnx", "int8"), 500, check_openvino, build_openvino),
    **{name: Target(FULL_INT8, None, check_vela, build_ethos_u) for name in CONFIGURATIONS},
    "tflm": Target(FULL_INT8, 50, check_tflm, build_tflm),
    "rk3588": Target(FileKey("onnx", "float32"), 100, check_rknn, build_rk3588),
}
