"""Fewer bits per weight in ONNX: dynamic int8 quantisation, and storage of weights in float16 or int8.

In dynamic int8, weights are quantised per output column, and activations per tensor at run time. Weights use all 8
signed bits: ARM and x86 with VNNI add the products exactly; older x86 (AVX2) may saturate where two large products are
added.

D input width, V outputs.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    import onnx


def quantize_onnx(model: "onnx.ModelProto", scratch: Path) -> "onnx.ModelProto":
    """Return the graph with int8 weights in every MatMul that has weights; `scratch` is a folder for temporary files.

    Convolutions stay in floating point. With ConvInteger the encoder takes 508 instead of 417 ms (whisper-tiny's
    shape), and 25 instead of 18 ms (alnum teacher; 1 thread of an AMD EPYC).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = scratch / "quantized.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # quantize_dynamic removes the weights from its argument
    logging.disable(logging.WARNING)  # it recommends shape inference, which the exporter has already done
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
    """Return symmetric int8 values [D, V] and float32 scales [V], with weight = int8 * scale."""
    scale_V = np.abs(weight_DV).max(axis=0) / 127
    scale_V = np.where(scale_V == 0, 1, scale_V).astype(np.float32)
    return np.clip(np.rint(weight_DV / scale_V), -127, 127).astype(np.int8), scale_V


def store_in_precision(model: "onnx.ModelProto", precision: Precision) -> "onnx.ModelProto":
    """Store the float32 matrices of a model in `precision`; added nodes, folded when it is loaded, convert them back.

    float16 weights are followed by a Cast. int8 weights, with one scale per row, are followed by a Cast and a Mul; they
    are the matrices that an int8 graph still holds in floating point: convolutions (a row is an output channel) and
    positions. Vectors (norms, biases, the scales of int8 columns) stay float32. Only the file shrinks: in memory the
    weights are float32.

    The alternative, to compute in float16 (onnxruntime.transformers.float16, the same file size), is slower on a CPU.
    1 thread of a busy AMD EPYC: a decoder step takes 12.5 instead of 9.8 ms (whisper-tiny's shape), 1.5 instead of 0.5
    ms (alnum teacher); the encoder's time is equal within noise, and the error of its states is 2.3e-3 instead of
    1.1e-3.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if precision == "fp32":
        return model
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    conversions = []
    for tensor in list(converted.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or 0 in tensor.dims:
            continue
        name, weight = tensor.name, numpy_helper.to_array(tensor)
        values, scale = quantize_rows(weight) if precision == "int8" else (weight.astype(np.float16), None)
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.stored"))
        cast = name if scale is None else f"{name}.cast"
        conversions.append(helper.make_node("Cast", [tensor.name], [cast], f"{name}.float", to=TensorProto.FLOAT))
        if scale is not None:
            converted.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            conversions.append(helper.make_node("Mul", [cast, f"{name}.scale"], [name], f"{name}.scaled"))
    nodes = [*conversions, *converted.graph.node]
    del converted.graph.node[:]
    converted.graph.node.extend(nodes)
    return converted


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return symmetric int8 values of the same shape, and a float32 scale per index of the first axis.

    The scales keep the number of axes: all but the first have length 1, so that weight = int8 * scale.
    """
    rows, scale = quantize_columns(weight.reshape(len(weight), -1).T)
    return rows.T.reshape(weight.shape), scale.reshape(-1, *[1] * (weight.ndim - 1))
