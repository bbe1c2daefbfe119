"""Token embedding and tied output head as ONNX nodes over one vocabulary matrix, in floating point or int8.

B batch, L tokens, D model width, V vocabulary.
"""

from typing import TYPE_CHECKING

import numpy as np

from distill.exporters.onnx_quantize import quantize_columns
from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    import onnx

    VocabularyNodes = tuple[list[onnx.NodeProto], list[onnx.NodeProto], list[onnx.TensorProto]]


def vocabulary_nodes(embedding_DV: np.ndarray, precision: Precision) -> "VocabularyNodes":
    """Return the nodes of the token embedding, the nodes of the head, and the weights that both read.

    The embedding maps input_ids [B, L] to embedded [B, L, D], the head maps hidden [B, L, D] to logits [B, L, V].

    The matrix is stored in the layout of the head's MatMul, and the embedding gathers columns, which costs a few
    hundred strided reads per token. With the other layout ONNX Runtime either transposes the matrix at load and keeps
    both copies, or does not run the head in int8.
    """
    return _int8_nodes(embedding_DV) if precision == "int8" else _float_nodes(embedding_DV)


def _float_nodes(embedding_DV: np.ndarray) -> "VocabularyNodes":
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


def _int8_nodes(embedding_DV: np.ndarray) -> "VocabularyNodes":
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
        # ONNX Runtime fuses exactly this pattern into one DynamicQuantizeMatMul.
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
