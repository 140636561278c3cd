"""The inference engines, in one dict.

An engine loads a model file's bytes as an InferenceSession, which maps uint8 [1, H, W, 3] to the outputs by
name. It is imported only when it is used.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from runtime.common.cpu_info import is_x86_without_vnni
from runtime.common.errors import EngineError, ModelError
from runtime.common.packages import install_command
from runtime.model_file.files import MAX_OUTPUT_VALUES, MAX_TENSOR_VALUES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.model_file.loader import ModelFile

# Two engines send reports of their use to their makers. Both settings work only before the engine's import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime, from 1.29 on
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO skips what is missing

OUTPUTS = frozenset({"probabilities", "known", "features"})  # the outputs that a contract describes
MAX_THREADS = 1024  # far more end the process, where the system starts no more
MAX_REASON_LENGTH = 300  # characters of an engine's own error message
OPENVINO_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",  # one picture at a time
    # By default, processors with AMX compute in bfloat16 and newer Arm processors in float16: their answers
    # would differ from those of this file elsewhere.
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_HYPER_THREADING": True,  # the number of threads counts logical cores, as in the other engines
    # By default, each process binds its threads to the first cores: two processes would share a core.
    "ENABLE_CPU_PINNING": False,
}


class BrokenEngineError(EngineError):
    """An engine that is installed, but cannot be imported."""


@dataclass(frozen=True)
class InferenceSession:
    """A loaded model. Call it with the image, uint8 [1, H, W, 3], for the outputs, float32, by name."""

    name: str  # of the engine, a key of ENGINES
    version: str  # of the engine
    input: tuple[str, tuple[int, ...]]  # dtype and shape; -1 where any size is accepted
    outputs: Mapping[str, tuple[int, ...]]  # shapes
    dtypes: Mapping[str, str]  # of the outputs
    run: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]

    @property
    def engine(self) -> str:
        """The engine with its version, such as "litert 2.3.0"; `engine_name` returns the name."""
        return f"{self.name} {self.version}"

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Raises EngineError when the engine fails, or returns another shape than the file declares."""
        try:
            outputs = self.run(image)
        except Exception as error:  # each engine has its own exception types
            reason = _one_line(error)
            raise EngineError(f"{self.engine} cannot run this model: {reason}: export it again") from None
        for name in OUTPUTS & outputs.keys():
            if outputs[name].shape != (len(image), *self.outputs[name][1:]):
                raise EngineError(
                    f"{self.engine} returned {name} of shape {list(outputs[name].shape)}, "
                    f"but the file declares {list(self.outputs[name])}: export it again"
                )
        return outputs


@dataclass(frozen=True)
class Engine:
    """An inference engine for one format of model files."""

    module: str  # the package to import
    format: str
    load: Callable[[bytes, int], InferenceSession]  # a file's bytes, on a number of threads


def load_session(model: ModelFile, engine: str = "auto", threads: int | None = None) -> InferenceSession:
    """Loads a model's bytes into an engine, and checks that its inputs and outputs fit its contract.

    Raises EngineError when the engine is missing or cannot load the file, or for a number of threads that no
    engine can have, BrokenEngineError when it cannot be imported, ModelError when the file differs from its
    contract.
    """
    threads = threads or default_threads()
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"{threads} threads: give a whole number from 1 to {MAX_THREADS:,}")
    engine = choose_engine(model.format) if engine == "auto" else engine
    if ENGINES[engine].format != model.format:
        raise EngineError(f"{model.path}: {engine} runs {ENGINES[engine].format} files, not {model.format}")
    require_engine(engine)
    import_engine(engine)
    try:
        session = ENGINES[engine].load(model.data, threads)
    except Exception as error:  # each engine has its own exception types
        raise EngineError(f"{model.path}: {engine} cannot load it: {_one_line(error)}") from None
    _check_signature(model, session)
    return session


def _check_signature(model: ModelFile, session: InferenceSession) -> None:
    contract = model.contract
    height, width = contract.input_size
    dtype, shape = session.input
    if dtype != "uint8" or len(shape) != 4 or shape[0] not in (1, -1) or shape[1:] != (height, width, 3):
        raise ModelError(
            f"{model.path}: takes {dtype} {list(shape)}, its contract says uint8 [1, {height}, {width}, 3]"
        )
    _check_output(model.path, session, "probabilities", len(contract.labels))
    if "known" in session.outputs and "known" not in contract.thresholds:
        raise ModelError(f"{model.path}: has an output `known`, but its contract has no threshold for it")
    if "known" in contract.thresholds:  # without this output, every picture would get a name
        _check_output(model.path, session, "known", 1)
    if contract.features is not None:
        _check_output(model.path, session, "features", contract.features)


def _check_output(path: Path, session: InferenceSession, name: str, columns: int) -> None:
    dtype, shape = session.dtypes.get(name), session.outputs.get(name)
    if dtype != "float32" or shape not in ((1, columns), (-1, columns)):
        found = f"{dtype} {list(shape)}" if shape is not None else "nothing"
        raise ModelError(
            f"{path}: returns {found} as {name}, its contract says float32 [1, {columns}]: export it again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_REASON_LENGTH]


def engine_name(engine: str) -> str:
    """Returns the name of an engine with its version, such as "litert" for "litert 2.3.0"."""
    return engine.partition(" ")[0]


def is_installed(engine: str) -> bool:
    spec = find_spec(ENGINES[engine].module)
    # Python takes any folder of that name for a package, such as a clone of the engine's source code.
    return spec is not None and spec.origin is not None


def engine_version(engine: str) -> str:
    """Returns the version of an installed engine without importing it, which takes 0.1 s or more.

    pip writes the version into the name of a folder next to the package. Without that folder, returns the
    time of installation, which changes with the version too.
    """
    module = ENGINES[engine].module
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    package = Path(spec.origin)
    for folder in package.parent.parent.glob(f"{module}-*.dist-info"):
        return folder.name.removeprefix(f"{module}-").removesuffix(".dist-info")
    return str(package.stat().st_mtime_ns)


def engine_order() -> tuple[str, ...]:
    """Returns the engines in the order in which "auto" tries them on this processor without a measurement."""
    return ORDER_WITHOUT_VNNI if is_x86_without_vnni() else tuple(ENGINES)


def choose_engine(format: str, broken: Mapping[str, BrokenEngineError] = MappingProxyType({})) -> str:
    """Returns the first installed engine, in the order of `engine_order`, for this format.

    Raises the error of the first one if all installed engines are `broken`, and EngineError without any.
    """
    of_format = [engine for engine in engine_order() if ENGINES[engine].format == format]
    installed = [engine for engine in of_format if is_installed(engine)]
    for engine in installed:
        if engine not in broken:
            return engine
    if installed:
        raise broken[installed[0]]
    raise EngineError(f"no engine for {format} files is installed: {install_hint(format)}")


def require_engine(engine: str) -> None:
    """Raises EngineError when the engine is not installed."""
    if not is_installed(engine):
        hint = install_hint(ENGINES[engine].format, engine)
        raise EngineError(f"{engine} ({ENGINES[engine].module}) is not installed: {hint}")


def import_engine(engine: str) -> None:
    """Imports an installed engine. Raises BrokenEngineError, such as for a missing shared library."""
    module = ENGINES[engine].module
    try:
        import_module(f"{module}.interpreter" if ENGINES[engine].format == "tflite" else module)
    except Exception as error:  # not only ImportError: whatever a broken package raises
        reason = _one_line(error)
        if engine == "tflite":  # it was built against numpy 1, which its metadata does not say
            text = f"tflite-runtime does not load ({reason}): pip install 'numpy<2'"
        else:
            text = (
                f"{engine} is installed, but cannot be imported ({reason}): install it again, or choose "
                "another --engine"
            )
        raise BrokenEngineError(text) from None


def install_hint(format: str, engine: str | None = None) -> str:
    """Returns the install command for an engine on this machine, or why there is none."""
    arm32 = platform.machine() in ("armv7l", "armv8l") or (
        platform.machine() == "aarch64" and sys.maxsize < 2**32
    )
    has_tflite_runtime = sys.platform == "linux" and sys.version_info < (3, 12)
    if arm32 and (format == "onnx" or engine == "litert" or not has_tflite_runtime):
        return (
            "32-bit Arm runs TFLite files only, with tflite-runtime on Python 3.9 to 3.11: "
            "use a 64-bit Raspberry Pi OS, where pip install '.[litert]' works"
        )
    if engine == "tflite" and not has_tflite_runtime:
        return "tflite-runtime has wheels for Linux and Python up to 3.11 only: " + install_command("litert")
    extra = engine or ("onnx" if format == "onnx" else "tflite" if arm32 else "litert")
    return install_command(extra)


def default_threads() -> int:
    """Returns the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _load_litert(data: bytes, threads: int) -> InferenceSession:
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=threads)
    return _tflite_session("litert", ai_edge_litert.__version__, interpreter)


def _load_tflite(data: bytes, threads: int) -> InferenceSession:
    import tflite_runtime
    from tflite_runtime.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=threads)
    return _tflite_session("tflite", tflite_runtime.__version__, interpreter)


def _tflite_session(name: str, version: str, interpreter: Any) -> InferenceSession:
    import numpy as np  # late: commands parse their flags without it

    _check_sizes(interpreter.get_output_details(), MAX_OUTPUT_VALUES)
    _check_sizes(interpreter.get_tensor_details(), MAX_TENSOR_VALUES)
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    if interpreter.get_signature_list():
        outputs = interpreter.get_signature_runner().get_output_details()
    else:
        # Only the converter's tensor names are left then: "probabilities", or "…/probabilities:0".
        details = interpreter.get_output_details()
        outputs = {detail["name"].split("/")[-1].split(":")[0]: detail for detail in details}
    indices = {name: detail["index"] for name, detail in outputs.items()}

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        interpreter.set_tensor(image["index"], pixels)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in indices.items()}

    return InferenceSession(
        name=name,
        version=version,
        input=(np.dtype(image["dtype"]).name, tuple(int(side) for side in image["shape"])),
        outputs={name: tuple(int(side) for side in detail["shape"]) for name, detail in outputs.items()},
        dtypes={name: np.dtype(detail["dtype"]).name for name, detail in outputs.items()},
        run=run,
    )


def _check_sizes(tensors: list[dict[str, Any]], limit: int) -> None:
    """Raises ValueError for a tensor that is declared larger than `limit`, before memory is allocated."""

    for tensor in tensors:
        if (values := prod(map(int, tensor["shape"]))) > limit:
            raise ValueError(f"it declares a tensor of {values:,} values, the limit is {limit:,}")


def _load_onnx(data: bytes, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # fatal: errors are raised as exceptions, and need no log
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    outputs = session.get_outputs()
    names = [output.name for output in outputs]

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {image.name: pixels}), strict=True))

    return InferenceSession(
        name="onnx",
        version=onnxruntime.__version__,
        input=(_numpy_dtype(image.type), _fixed_shape(image.shape)),
        outputs={output.name: _fixed_shape(output.shape) for output in outputs},
        dtypes={output.name: _numpy_dtype(output.type) for output in outputs},
        run=run,
    )


def _numpy_dtype(onnx_type: str) -> str:
    """Returns numpy's name of an ONNX type such as tensor(float)."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return "float32" if name == "float" else name


def _fixed_shape(shape: list[int | str | None]) -> tuple[int, ...]:
    return tuple(side if isinstance(side, int) else -1 for side in shape)


def _load_openvino(data: bytes, threads: int) -> InferenceSession:
    import openvino

    core = _openvino_core(os.getpid())
    model = core.read_model(data)
    if len(model.inputs) != 1:  # it drops an input that no output depends on
        raise ValueError(f"its outputs depend on {len(model.inputs)} inputs instead of 1")
    (image,) = model.inputs
    outputs = {port.get_any_name(): port for port in model.outputs}
    declared_input = _openvino_dtype(image), _openvino_shape(image)
    shapes = {name: _openvino_shape(port) for name, port in outputs.items()}
    dtypes = {name: _openvino_dtype(port) for name, port in outputs.items()}
    # Compiled for one picture, an inference takes 0.9 of the time of a model with an open batch.
    model.reshape([1, *list(image.get_partial_shape())[1:]])
    compiled = core.compile_model(model, "CPU", {**OPENVINO_SETTINGS, "INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()
    return InferenceSession(
        name="openvino",
        version=openvino.__version__.split("-")[0],
        input=declared_input,
        outputs=shapes,
        dtypes=dtypes,
        run=lambda pixels: dict(zip(shapes, request.infer([pixels]).values(), strict=True)),
    )


@cache
def _openvino_core(process: int) -> Any:
    """Returns the one core of the process with this number, which is never freed.

    OpenVINO 2026.4 gives the thread that compiles first a signal stack of its own, and frees that memory with
    the core. A core freed by another thread leaves a stack that does not exist: the next signal, for example
    Ctrl-C, ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _openvino_dtype(port: Any) -> str:
    """Returns numpy's name of the type of an input or output."""
    return str(port.get_element_type().to_dtype().name)


def _openvino_shape(port: Any) -> tuple[int, ...]:
    """Returns the shape of an input or output; -1 where any size is accepted."""
    return tuple(side.get_length() if side.is_static else -1 for side in port.get_partial_shape())


# In the order in which "auto" tries them on a machine without measurements: by their int8 speed on x86 with
# VNNI (benchmarks/reference/). No order was measured on Arm.
ENGINES = {
    "litert": Engine("ai_edge_litert", "tflite", _load_litert),
    "onnx": Engine("onnxruntime", "onnx", _load_onnx),
    "openvino": Engine("openvino", "onnx", _load_openvino),
    "tflite": Engine("tflite_runtime", "tflite", _load_tflite),
}
# On AVX2 without VNNI the int8 file of models/flowers took 10 to 11.5 ms in ONNX Runtime, 17 to 20 in LiteRT:
# engines of ONNX files come first.
ORDER_WITHOUT_VNNI = tuple(sorted(ENGINES, key=lambda engine: ENGINES[engine].format != "onnx"))
