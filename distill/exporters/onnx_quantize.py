"""Fewer bits a weight: dynamic int8, and float16 or int8 storage.

Dynamic int8: weights are quantised per output column, activations per tensor as they come. Weights use all 8
signed bits: ARM and x86 with VNNI sum them exactly; older x86 (AVX2) may saturate where two large products
meet.

D width, V vocabulary.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    import onnx


def quantize_onnx(model: "onnx.ModelProto", scratch: Path) -> "onnx.ModelProto":
    """The same graph with int8 weights in every MatMul that has any; `scratch` is a folder for its files.

    Convolutions stay in floating point: with ConvInteger the encoder takes 508 and not 417 ms (whisper-tiny's
    shape), 25 and not 18 ms (alnum teacher; 1 thread of an AMD EPYC).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = scratch / "quantized.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # quantize_dynamic takes the weights out of the model it is given
    logging.disable(logging.WARNING)  # it advises shape inference, which the exporter has done
    try:
        quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path)


def quantize_columns(weight_DV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 [D, V] and float32 scales [V] with weight = int8 * scale."""
    scale_V = np.abs(weight_DV).max(axis=0) / 127
    scale_V = np.where(scale_V == 0, 1, scale_V).astype(np.float32)
    return np.clip(np.rint(weight_DV / scale_V), -127, 127).astype(np.int8), scale_V


def store_in_precision(model: "onnx.ModelProto", precision: Precision) -> "onnx.ModelProto":
    """The same model with its float32 matrices in the precision's width, widened by nodes that are folded at load.

    float16 behind a Cast; int8 with a scale a row behind a Cast and a Mul, which are what an int8 graph still has in
    float: convolutions (a row is an output channel) and positions. Vectors (norms, biases, the scales of int8 columns)
    stay float32. Computing in float16 instead (onnxruntime.transformers.float16, the same file size) is slower on a
    CPU, 1 thread of a busy AMD EPYC: a decoder step takes 12.5 against 9.8 ms (whisper-tiny's shape), 1.5 against 0.5
    ms (alnum teacher); the encoder is equal within noise, its states off by 2.3e-3 against 1.1e-3. Only the file
    shrinks: in memory the weights are float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if precision == "fp32":
        return model
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    widened = []
    for tensor in list(stored.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or 0 in tensor.dims:
            continue
        name, weight = tensor.name, numpy_helper.to_array(tensor)
        values, scale = quantize_rows(weight) if precision == "int8" else (weight.astype(np.float16), None)
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.stored"))
        cast = name if scale is None else f"{name}.cast"
        widened.append(helper.make_node("Cast", [tensor.name], [cast], f"{name}.float", to=TensorProto.FLOAT))
        if scale is not None:
            stored.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            widened.append(helper.make_node("Mul", [cast, f"{name}.scale"], [name], f"{name}.scaled"))
    nodes = [*widened, *stored.graph.node]
    del stored.graph.node[:]
    stored.graph.node.extend(nodes)
    return stored


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 of the same shape and a float32 scale for each index of the first axis, kept as an axis of one."""
    rows, scale = quantize_columns(weight.reshape(len(weight), -1).T)
    return rows.T.reshape(weight.shape), scale.reshape(-1, *[1] * (weight.ndim - 1))
