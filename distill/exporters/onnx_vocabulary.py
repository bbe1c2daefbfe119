"""Token lookup and tied head over one stored vocabulary matrix, in floating point or int8.

B batch, L tokens, D width, V vocabulary.
"""

from typing import TYPE_CHECKING

import numpy as np

from distill.exporters.onnx_quantize import quantize_columns

if TYPE_CHECKING:
    import onnx

    Part = tuple[list[onnx.NodeProto], list[onnx.NodeProto], list[onnx.TensorProto]]


def vocabulary_nodes(embedding_DV: np.ndarray, precision: str) -> "Part":
    """Nodes input_ids [B, L] -> embedded [B, L, D], nodes hidden [B, L, D] -> logits [B, L, V], weights.

    The matrix lies as the head's MatMul wants it and the lookup gathers columns: a few hundred strided reads
    a token. The other way round ONNX Runtime transposes it at load and keeps both, or leaves the head out of
    int8.
    """
    return _int8(embedding_DV) if precision == "int8" else _float(embedding_DV)


def _float(embedding_DV: np.ndarray) -> "Part":
    from onnx import helper, numpy_helper

    node = helper.make_node
    return (
        [
            node("Gather", ["embed_tokens", "input_ids"], ["columns"], "lookup", axis=1),
            node("Transpose", ["columns"], ["embedded"], "lookup_rows", perm=[1, 2, 0]),
        ],
        [node("MatMul", ["hidden", "embed_tokens"], ["logits"], "head")],
        [numpy_helper.from_array(embedding_DV, "embed_tokens")],
    )


def _int8(embedding_DV: np.ndarray) -> "Part":
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    int8_DV, scale_V = quantize_columns(embedding_DV)
    return (
        [
            node("Gather", ["embed_tokens", "input_ids"], ["columns"], "lookup", axis=1),
            node("Transpose", ["columns"], ["rows"], "lookup_rows", perm=[1, 2, 0]),
            node("Cast", ["rows"], ["rows_float"], "lookup_float", to=TensorProto.FLOAT),
            node("Gather", ["embed_tokens_scale", "input_ids"], ["row_scale"], "lookup_scale", axis=0),
            node("Unsqueeze", ["row_scale", "last_axis"], ["row_scales"], "lookup_scale_axis"),
            node("Mul", ["rows_float", "row_scales"], ["embedded"], "lookup_scaled"),
        ],
        # The form ONNX Runtime fuses to one DynamicQuantizeMatMul.
        [
            node(
                "DynamicQuantizeLinear",
                ["hidden"],
                ["hidden_int8", "hidden_scale", "hidden_zero"],
                "head_input",
            ),
            node(
                "MatMulInteger",
                ["hidden_int8", "embed_tokens", "hidden_zero", "embed_tokens_zero"],
                ["logits_int32"],
                "head",
            ),
            node("Cast", ["logits_int32"], ["logits_float"], "head_float", to=TensorProto.FLOAT),
            node("Mul", ["hidden_scale", "embed_tokens_scale"], ["logits_scale"], "head_scale"),
            node("Mul", ["logits_float", "logits_scale"], ["logits"], "head_scaled"),
        ],
        [
            numpy_helper.from_array(int8_DV, "embed_tokens"),
            numpy_helper.from_array(scale_V, "embed_tokens_scale"),
            numpy_helper.from_array(np.zeros(len(scale_V), np.int8), "embed_tokens_zero"),
            numpy_helper.from_array(np.array([2], np.int64), "last_axis"),
        ],
    )
