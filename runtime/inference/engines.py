"""The engines that run a model file: one function each, in one dict.

Each takes a file's bytes and a number of threads and gives back a Run, which maps uint8 [1, H, W, 3] to the
outputs by their names. An engine is imported when it is asked for, and only that one.
"""

import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import EngineError, ModelError
from runtime.model_file.loader import ModelFile

MODULES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime", "onnx": "onnxruntime"}
OUTPUTS = frozenset({"probabilities", "known"})  # those that a contract speaks of
FORMATS_OF = {"litert": "tflite", "tflite": "tflite", "onnx": "onnx"}


@dataclass(frozen=True)
class InferenceSession:
    """A loaded model. Calling it with the image, uint8 [1, H, W, 3], gives the outputs, float32, by name."""

    engine: str  # with its version: "litert 2.3.0"
    input: tuple[str, tuple[int, ...]]  # dtype and shape; -1 where any size goes
    outputs: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]  # of the outputs
    call: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Raises EngineError when the engine fails, or gives another shape than the file says."""
        try:
            outputs = self.call(image)
        except Exception as error:  # each engine has its own
            reason = _one_line(error)
            raise EngineError(f"{self.engine} cannot run this model: {reason}: export it again") from None
        for name in OUTPUTS & outputs.keys():
            if outputs[name].shape != (len(image), *self.outputs[name][1:]):
                raise EngineError(
                    f"{self.engine} gives {name} of shape {list(outputs[name].shape)}, "
                    f"where the file says {list(self.outputs[name])}: export it again"
                )
        return outputs


def load_session(model: ModelFile, engine: str = "auto", threads: int | None = None) -> InferenceSession:
    """Gives the model's bytes to an engine, and checks that what the file computes is what its contract says.

    Raises EngineError when the engine is missing or cannot run the file, ModelError when the two disagree.
    """
    engine = choose_engine(model.format) if engine == "auto" else engine
    if FORMATS_OF[engine] != model.format:
        raise EngineError(f"{model.path}: {engine} runs {FORMATS_OF[engine]} files, not {model.format}")
    require_engine(engine)
    try:
        run = ENGINES[engine](model.data, threads or default_threads())
    except EngineError:
        raise
    except Exception as error:  # each engine has its own
        raise EngineError(f"{model.path}: {engine} cannot load it: {_one_line(error)}") from None
    contract = model.contract
    height, width = contract.input_size
    dtype, shape = run.input
    if dtype != "uint8" or len(shape) != 4 or shape[0] not in (1, -1) or shape[1:] != (height, width, 3):
        raise ModelError(
            f"{model.path}: takes {dtype} {list(shape)}, its contract says uint8 [1, {height}, {width}, 3]"
        )
    _check_output(model.path, run, "probabilities", len(contract.labels))
    if "known" in run.outputs and "known" not in contract.thresholds:
        raise ModelError(f"{model.path}: has an output `known`, but its contract gives no threshold for it")
    if "known" in run.outputs:
        _check_output(model.path, run, "known", 1)
    return run


def _check_output(path: Path, run: InferenceSession, name: str, columns: int) -> None:
    dtype, shape = run.dtypes.get(name), run.outputs.get(name)
    if dtype != "float32" or shape not in ((1, columns), (-1, columns)):
        gives = f"{dtype} {list(shape)}" if shape is not None else "nothing"
        raise ModelError(
            f"{path}: gives {gives} as {name}, its contract says float32 [1, {columns}]: export it again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def is_installed(engine: str) -> bool:
    return find_spec(MODULES[engine]) is not None


def engine_version(engine: str) -> str:
    """Of an installed engine, without the tenths of a second that its import takes: from its source's text.

    Where that does not say, the time of its installation, which changes with the version too.
    """
    spec = find_spec(MODULES[engine])
    if spec is None or spec.origin is None:
        return ""
    with Path(spec.origin).open("rb") as file:
        said = re.search(rb"""^__version__ = ["']([\w.+-]+)["']""", file.read(2**16), re.MULTILINE)
    return said[1].decode() if said else str(Path(spec.origin).stat().st_mtime_ns)


def choose_engine(format: str) -> str:
    """The first installed engine, in the order of ENGINES, that runs this format. Raises EngineError."""
    for engine in ENGINES:
        if FORMATS_OF[engine] == format and is_installed(engine):
            return engine
    raise EngineError(f"no engine for {format} files is installed: {how_to_install(format)}")


def require_engine(engine: str) -> None:
    """Raises EngineError when it is not installed."""
    if not is_installed(engine):
        raise EngineError(
            f"{engine} ({MODULES[engine]}) is not installed: {how_to_install(FORMATS_OF[engine], engine)}"
        )


def how_to_install(format: str, engine: str | None = None) -> str:
    """What to type on this machine to get an engine for these files, or the plain word that there is none."""
    arm32 = platform.machine() in ("armv7l", "armv8l") or (
        platform.machine() == "aarch64" and sys.maxsize < 2**32
    )
    tflite_runtime = sys.platform == "linux" and sys.version_info < (3, 12)
    if arm32 and (format == "onnx" or engine == "litert" or not tflite_runtime):
        return (
            "on 32-bit Arm only TFLite files run, with tflite-runtime on Python 3.9 to 3.11: "
            "use a 64-bit Raspberry Pi OS, where pip install 'vgg-edge[litert]' works"
        )
    if engine == "tflite" and not tflite_runtime:
        return (
            "tflite-runtime has wheels for Linux and Python up to 3.11 alone: pip install 'vgg-edge[litert]'"
        )
    extra = engine or ("onnx" if format == "onnx" else "tflite" if arm32 else "litert")
    return f"pip install 'vgg-edge[{extra}]'"


def default_threads() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _litert(data: bytes, threads: int) -> InferenceSession:
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    return _tflite_run(
        f"litert {ai_edge_litert.__version__}", Interpreter(model_content=data, num_threads=threads)
    )


def _tflite(data: bytes, threads: int) -> InferenceSession:
    try:
        import tflite_runtime
        from tflite_runtime.interpreter import Interpreter
    except ImportError as error:  # built against numpy 1, which pip does not know
        raise EngineError(f"tflite-runtime does not load ({error}): pip install 'numpy<2'") from None

    return _tflite_run(
        f"tflite {tflite_runtime.__version__}", Interpreter(model_content=data, num_threads=threads)
    )


def _tflite_run(engine: str, interpreter: Any) -> InferenceSession:
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    if interpreter.get_signature_list():
        outputs = interpreter.get_signature_runner().get_output_details()
    else:
        # Without one, the converter's tensor names are all there is: "probabilities", or "…/probabilities:0".
        details = interpreter.get_output_details()
        outputs = {detail["name"].split("/")[-1].split(":")[0]: detail for detail in details}
    at = {name: detail["index"] for name, detail in outputs.items()}

    def call(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        interpreter.set_tensor(image["index"], pixels)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in at.items()}

    return InferenceSession(
        engine=engine,
        input=(np.dtype(image["dtype"]).name, tuple(int(side) for side in image["shape"])),
        outputs={name: tuple(int(side) for side in detail["shape"]) for name, detail in outputs.items()},
        dtypes={name: np.dtype(detail["dtype"]).name for name, detail in outputs.items()},
        call=call,
    )


def _onnx(data: bytes, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # not errors either: they are raised
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    outputs = session.get_outputs()
    names = [output.name for output in outputs]

    def call(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {image.name: pixels}), strict=True))

    return InferenceSession(
        engine=f"onnx {onnxruntime.__version__}",
        input=(_dtype(image.type), _sides(image.shape)),
        outputs={output.name: _sides(output.shape) for output in outputs},
        dtypes={output.name: _dtype(output.type) for output in outputs},
        call=call,
    )


def _dtype(kind: str) -> str:
    """By numpy's name, of an ONNX type such as tensor(float)."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return "float32" if name == "float" else name


def _sides(shape: list[int | str | None]) -> tuple[int, ...]:
    return tuple(side if isinstance(side, int) else -1 for side in shape)


# In the order in which `auto` tries them unless this machine was measured: by their speed in int8 on x86
# (benchmarks/reference/). On Arm no order was measured.
ENGINES: dict[str, Callable[[bytes, int], InferenceSession]] = {
    "litert": _litert,
    "onnx": _onnx,
    "tflite": _tflite,
}
