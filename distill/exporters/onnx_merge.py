"""Merge the first and the cached decoder step into one ONNX model that stores every weight once.

    inputs   input_ids [B, L], encoder_hidden_states [B, S, D], use_cache_branch [1],
             past_key_values.N.{decoder,encoder}.{key,value} [B, H, P or S, K]
    outputs  logits [B, L, V], present.N.{decoder,encoder}.{key,value}

    input_ids -> Gather -> If(use_cache_branch) { cached step | first step } -> MatMul -> logits

As in optimum's merged files, the cached branch returns an empty tensor [0, H, 1, K] for present.N.encoder.*: the caller
keeps the cross-attention cache of the first step. Token embedding and head are outside the If, so that ONNX Runtime
packs the vocabulary matrix, which is most of a small decoder, for one MatMul instead of two.

B batch, L tokens, S encoder positions, P past tokens, D model width, H heads, K width of a head, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distill.exporters.onnx_vocabulary import vocabulary_nodes
from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    import onnx


def strip_debug_information(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return a copy without the exporter's notes on source files and on its own run: equal weights give equal bytes."""
    import onnx

    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    graph = stripped.graph
    for element in (stripped, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        element.ClearField("metadata_props")
        element.ClearField("doc_string")
    del graph.value_info[:]
    stripped.producer_name, stripped.producer_version, graph.name = "sottovoce", "", "whisper"
    return stripped


def merge_decoder(
    first: "onnx.ModelProto", past: "onnx.ModelProto", embedding_VD: np.ndarray, precision: Precision
) -> "onnx.ModelProto":
    """Merge two decoder steps and the tied vocabulary matrix into the model described at the top of this file.

    `first` and `past` map `embedded` to `hidden` and the cache. With precision int8 the vocabulary matrix is stored in
    int8 too, whatever the steps hold.
    """
    from onnx import helper, numpy_helper

    weights: dict[bytes, onnx.TensorProto] = {}
    output_names = [value.name for value in first.graph.output]
    heads, head_width = (first.graph.output[1].type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
    empty_cache = numpy_helper.from_array(np.zeros((0, heads, 1, head_width), np.float32), "no_cross_attention")
    branches = {
        "then_branch": _branch_graph(past, "past", output_names, weights, empty_cache.name),
        "else_branch": _branch_graph(first, "first", output_names, weights, empty_cache.name),
    }
    embedding_nodes, head_nodes, vocabulary = vocabulary_nodes(np.ascontiguousarray(embedding_VD.T), precision)
    if_node = helper.make_node("If", ["use_cache_branch"], output_names, name="step", **branches)
    inputs, outputs = _graph_interface(output_names[1:], heads, head_width, embedding_VD.shape)
    initializers = [*vocabulary, empty_cache, *weights.values()]
    graph = helper.make_graph([*embedding_nodes, if_node, *head_nodes], "whisper", inputs, outputs, initializers)
    merged = helper.make_model(graph, producer_name="sottovoce", opset_imports=_opset_imports(first, past))
    merged.ir_version = first.ir_version
    return merged


def _graph_interface(
    cache_names: Sequence[str], heads: int, head_width: int, embedding_shape: tuple[int, ...]
) -> "tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]":
    """Return the inputs and outputs of the merged model, with names and symbolic axes as optimum writes them."""
    from onnx import TensorProto, helper

    vocabulary_size, model_width = embedding_shape
    value, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    token_axes: list[int | str] = ["batch_size", "decoder_sequence_length"]
    states_shape = ["batch_size", "encoder_sequence_length", model_width]
    length_axes = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length_out"}
    inputs = [
        value("input_ids", TensorProto.INT64, token_axes),
        value("encoder_hidden_states", float32, states_shape),
        *(
            value(
                name.replace("present", "past_key_values"),
                float32,
                ["batch_size", heads, length_axes[name.split(".")[2]], head_width],
            )
            for name in cache_names
        ),
        value("use_cache_branch", TensorProto.BOOL, [1]),
    ]
    # Batch and length of a returned cache have no names, because those of the empty cache differ from the inputs'.
    outputs = [
        value("logits", float32, [*token_axes, vocabulary_size]),
        *(value(name, float32, [None, heads, None, head_width]) for name in cache_names),
    ]
    return inputs, outputs


def _branch_graph(
    model: "onnx.ModelProto",
    prefix: str,
    output_names: Sequence[str],
    weights: "dict[bytes, onnx.TensorProto]",
    missing_output: str,
) -> "onnx.GraphProto":
    """Turn `model` into a branch of an If node that returns `output_names`.

    Outputs that the model does not compute take the value `missing_output` of the enclosing graph. Its weights are
    added to `weights`, by the digest of their content, and its inputs become values of the enclosing graph. Every other
    name gets `prefix`.
    """
    from onnx import TensorProto, helper

    enclosing_names = {value.name: value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        digest = _content_digest(tensor)
        if digest not in weights:
            weights[digest] = type(tensor)()
            weights[digest].CopyFrom(tensor)
            # The exporter numbers folded constants anew in each graph, so two tensors named val_7 may differ.
            weights[digest].name = f"{tensor.name}.{digest.hex()[:8]}"
        enclosing_names[tensor.name] = weights[digest].name
    nodes = []
    for node in model.graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), "expected a step without subgraphs"
        renamed = type(node)()
        renamed.CopyFrom(node)
        renamed.name = f"{prefix}/{node.name}"
        renamed.input[:] = [name and enclosing_names.get(name, f"{prefix}/{name}") for name in node.input]
        renamed.output[:] = [name and f"{prefix}/{name}" for name in node.output]
        nodes.append(renamed)
    computed = {value.name for value in model.graph.output}
    for name in (name for name in output_names if name not in computed):
        nodes.append(helper.make_node("Identity", [missing_output], [f"{prefix}/{name}"], f"{prefix}/{name}"))
    outputs = [helper.make_tensor_value_info(f"{prefix}/{name}", TensorProto.FLOAT, None) for name in output_names]
    return helper.make_graph(nodes, prefix, [], outputs)


def _content_digest(tensor: "onnx.TensorProto") -> bytes:
    from onnx import numpy_helper

    content = numpy_helper.to_array(tensor)
    return hashlib.sha256(f"{content.dtype} {content.shape} ".encode() + content.tobytes()).digest()


def _opset_imports(*models: "onnx.ModelProto") -> "list[onnx.OperatorSetIdProto]":
    from onnx import helper

    versions = {opset.domain: opset.version for model in models for opset in model.opset_import}
    return [helper.make_opsetid(domain, version) for domain, version in sorted(versions.items())]
