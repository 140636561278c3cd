"""Write an int8 TFLite graph operator by operator, in its reference versions that small readers have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export.flatbuffer import pack
from export.int8.quantize import QuantParams

CODE_OFFSET = 128  # TFLite stores codes 0 to 255 as int8: minus 128
_SCHEMA_VERSION = 3
_TYPES = {np.dtype(name): getattr(schema.TensorType, name.upper()) for name in ("int8", "int32", "float32")}
# Since these versions, the operators have int8 kernels. RESHAPE always had.
_INT8_VERSIONS = {"CONV_2D": 3, "RESHAPE": 1}
_OTHER_INT8_VERSION = 2


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: int8 with `params`, or else float32. (A constant can also be int32.)"""

    index: int
    shape: tuple[int, ...]
    params: QuantParams | None = None


class TfliteGraph:
    """A graph that grows by one operator at a time, in the order of execution."""

    def __init__(self) -> None:
        self._graph = schema.SubGraphT(tensors=[], inputs=[], operators=[], name="main")
        self._codes: list[schema.OperatorCodeT] = []
        self._buffers = [schema.BufferT()]  # the first one is empty: tensors without data have it

    def image(self, shape: tuple[int, ...]) -> Tensor:
        """The graph's input, uint8 pixels, as int8: scale 1, real values 0 to 255."""
        pixels = QuantParams(1.0)
        index = self._append(shape, schema.TensorType.UINT8, "image", _stored_params(pixels, offset=0))
        self._graph.inputs = [index]
        return self.add("QUANTIZE", [Tensor(index, shape, pixels)], shape, pixels, schema.QuantizeOptionsT())

    def constant(self, values: NDArray[Any], scale: NDArray[np.float32] | None = None) -> Tensor:
        """An int8, int32 or float32 constant; codes have one `scale`, or one for each index of axis 0."""
        self._buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        params = None
        if scale is not None:
            params = schema.QuantizationParametersT(
                scale=scale, zeroPoint=np.zeros(len(scale), np.int64), quantizedDimension=0
            )
        index = self._append(
            values.shape, _TYPES[values.dtype], f"constant_{len(self._buffers) - 1}", params, self._buffers
        )
        return Tensor(index, values.shape)

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        shape: tuple[int, ...],
        params: QuantParams | None = None,
        options: Any = None,
    ) -> Tensor:
        """The output of a new operator, for example of "CONV_2D", on `inputs`."""
        dtype = schema.TensorType.INT8 if params else schema.TensorType.FLOAT32
        name = f"{kind.lower()}_{len(self._graph.operators)}"
        index = self._append(shape, dtype, name, _stored_params(params) if params else None)
        union = type(options).__name__.removesuffix("T") if options else "NONE"
        operator = schema.OperatorT(
            opcodeIndex=self._code(kind, is_int8=inputs[0].params is not None),
            inputs=[tensor.index for tensor in inputs],
            outputs=[index],
            builtinOptionsType=getattr(schema.BuiltinOptions, union),
            builtinOptions=options,
        )
        self._graph.operators.append(operator)
        return Tensor(index, shape, params)

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        sizes = self.constant(np.array(shape, np.int32))
        return self.add("RESHAPE", [x, sizes], shape, x.params, schema.ReshapeOptionsT(newShape=list(shape)))

    def convolve(
        self,
        x: Tensor,
        codes: NDArray[np.int8],
        scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        output: QuantParams,
        *,
        relu: bool = False,
    ) -> Tensor:
        """A convolution with stride 1 and same padding by codes [kh, kw, in, out] * scale [out].

        `bias` [out] is real. The weights have one scale per output channel.
        """
        assert x.params is not None
        kernel = self.constant(np.ascontiguousarray(codes.transpose(3, 0, 1, 2)), scale)
        options = schema.Conv2DOptionsT(
            padding=schema.Padding.SAME,
            strideH=1,
            strideW=1,
            fusedActivationFunction=_RELU if relu else _NO_ACTIVATION,
        )
        inputs = [x, kernel, self._bias(bias, scale, x.params)]
        return self.add("CONV_2D", inputs, (*x.shape[:3], codes.shape[3]), output, options)

    def dense(
        self, x: Tensor, kernel: NDArray[np.float32], bias: NDArray[np.float32], *, relu: bool = False
    ) -> Tensor:
        """x [1, in] times the kernel [in, out], plus the bias [out], in float32."""
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=_RELU if relu else _NO_ACTIVATION)
        inputs = [x, self.constant(np.ascontiguousarray(kernel.T)), self.constant(bias)]
        return self.add("FULLY_CONNECTED", inputs, (1, kernel.shape[1]), options=options)

    def max_pool(self, x: Tensor) -> Tensor:
        """The maximum of each 2 x 2 block: an odd last row or column is left out."""
        batch, height, width, channels = x.shape
        options = schema.Pool2DOptionsT(
            padding=schema.Padding.VALID, strideH=2, strideW=2, filterHeight=2, filterWidth=2
        )
        return self.add("MAX_POOL_2D", [x], (batch, height // 2, width // 2, channels), x.params, options)

    def mean(self, x: Tensor, output: QuantParams | None = None) -> Tensor:
        """The means over positions, [1, H, W, C] → [1, 1, 1, C], in the type of x."""
        axes = self.constant(np.array([1, 2], np.int32))
        return self.add(
            "MEAN", [x, axes], (1, 1, 1, x.shape[3]), output, schema.ReducerOptionsT(keepDims=True)
        )

    def reduce_max(self, x: Tensor) -> Tensor:
        """The largest channel, [1, C] → [1, 1]."""
        axes = self.constant(np.array([1], np.int32))
        options = schema.ReducerOptionsT(keepDims=True)
        return self.add("REDUCE_MAX", [x, axes], (1, 1), x.params, options)

    def to_bytes(self, outputs: Mapping[str, Tensor], description: str) -> bytes:
        """The file. `outputs` become its outputs and, with the input `image`, its signature, in order."""
        self._graph.outputs = [tensor.index for tensor in outputs.values()]
        for name, tensor in outputs.items():
            self._graph.tensors[tensor.index].name = name
        signature = schema.SignatureDefT(
            inputs=[schema.TensorMapT(name="image", tensorIndex=self._graph.inputs[0])],
            outputs=[schema.TensorMapT(name=name, tensorIndex=t.index) for name, t in outputs.items()],
            signatureKey="serving_default",
        )
        model = schema.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=self._codes,
            subgraphs=[self._graph],
            description=description,
            buffers=self._buffers,
            signatureDefs=[signature],
        )
        return pack(model)

    def _bias(self, bias: NDArray[np.float32], scale: NDArray[np.float32], source: QuantParams) -> Tensor:
        step = (scale * np.float32(source.scale)).astype(np.float32)
        limit = np.iinfo(np.int32).max // 2  # room for the sum of the products
        codes = np.clip(np.round(bias / step), -limit, limit).astype(np.int32)
        return self.constant(codes, step)

    def _append(
        self,
        shape: tuple[int, ...],
        dtype: int,
        name: str,
        params: schema.QuantizationParametersT | None,
        buffers: Sequence[schema.BufferT] = ("",),
    ) -> int:
        tensor = schema.TensorT(
            shape=np.array(shape, np.int32),
            type=dtype,
            buffer=len(buffers) - 1,
            name=name,
            quantization=params,
        )
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _code(self, kind: str, is_int8: bool) -> int:
        """The index of the operator code, which is added where it is new."""
        version = _INT8_VERSIONS.get(kind, _OTHER_INT8_VERSION) if is_int8 else 1
        builtin = getattr(schema.BuiltinOperator, kind)
        for index, code in enumerate(self._codes):
            if (code.builtinCode, code.version) == (builtin, version):
                return index
        self._codes.append(schema.OperatorCodeT(builtinCode=builtin, version=version))
        return len(self._codes) - 1


_RELU = schema.ActivationFunctionType.RELU
_NO_ACTIVATION = schema.ActivationFunctionType.NONE


def _stored_params(params: QuantParams, offset: int = CODE_OFFSET) -> schema.QuantizationParametersT:
    return schema.QuantizationParametersT(
        scale=np.array([params.scale], np.float32),
        zeroPoint=np.array([params.zero_point - offset], np.int64),
    )
