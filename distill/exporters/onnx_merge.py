"""The first and the cached decoder step in one file, every weight stored once.

    inputs   input_ids [B, L], encoder_hidden_states [B, S, D], use_cache_branch [1],
             past_key_values.N.{decoder,encoder}.{key,value} [B, H, P or S, K]
    outputs  logits [B, L, V], present.N.{decoder,encoder}.{key,value}

    input_ids -> Gather -> If(use_cache_branch) { cached step | first step } -> MatMul -> logits

As in optimum's merged files the cached branch answers present.N.encoder.* with an empty tensor [0, H, 1, K]:
the caller keeps the first step's. Token lookup and head stand outside the If, so that ONNX Runtime packs the
vocabulary matrix, most of a small decoder, for one MatMul and not for two.

B batch, L tokens, S encoder positions, P past tokens, D width, H heads, K width of a head, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distill.exporters.onnx_vocabulary import vocabulary_nodes

if TYPE_CHECKING:
    import onnx


def strip_debug_information(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Drop what the exporter notes of source files and its own run: equal weights give equal bytes."""
    import onnx

    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    graph = clean.graph
    for part in (clean, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    clean.producer_name, clean.producer_version, graph.name = "sottovoce", "", "whisper"
    return clean


def merge_decoder(
    first: "onnx.ModelProto", past: "onnx.ModelProto", embedding_VD: np.ndarray, precision: str
) -> "onnx.ModelProto":
    """Two steps from `embedded` to `hidden` and the tied vocabulary matrix to one model, as the file's top
    says.

    With precision int8 the vocabulary matrix is int8 too, whatever the steps are.
    """
    from onnx import helper, numpy_helper

    weights: dict[bytes, onnx.TensorProto] = {}
    results = [value.name for value in first.graph.output]
    heads, width = (first.graph.output[1].type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
    empty = numpy_helper.from_array(np.zeros((0, heads, 1, width), np.float32), "no_cross_attention")
    branches = {
        "then_branch": _branch(past, "past", results, weights, empty.name),
        "else_branch": _branch(first, "first", results, weights, empty.name),
    }
    lookup, head, vocabulary = vocabulary_nodes(np.ascontiguousarray(embedding_VD.T), precision)
    choose = helper.make_node("If", ["use_cache_branch"], results, name="step", **branches)
    inputs, outputs = _interface(results[1:], heads, width, embedding_VD.shape)
    stored = [*vocabulary, empty, *weights.values()]
    graph = helper.make_graph([*lookup, choose, *head], "whisper", inputs, outputs, stored)
    merged = helper.make_model(graph, producer_name="sottovoce", opset_imports=_opsets(first, past))
    merged.ir_version = first.ir_version
    return merged


def _interface(
    caches: Sequence[str], heads: int, width: int, vocabulary: tuple[int, ...]
) -> "tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]":
    from onnx import TensorProto, helper

    size, model_width = vocabulary
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    tokens: list[int | str] = ["batch_size", "decoder_sequence_length"]
    states = ["batch_size", "encoder_sequence_length", model_width]
    lengths = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length_out"}
    inputs = [
        value("input_ids", TensorProto.INT64, tokens),
        value("encoder_hidden_states", real, states),
        *(
            value(
                name.replace("present", "past_key_values"),
                real,
                ["batch_size", heads, lengths[name.split(".")[2]], width],
            )
            for name in caches
        ),
        value("use_cache_branch", TensorProto.BOOL, [1]),
    ]
    # A cache's batch and length go without a name: the placeholder's do not follow the inputs'.
    outputs = [
        value("logits", real, [*tokens, size]),
        *(value(name, real, [None, heads, None, width]) for name in caches),
    ]
    return inputs, outputs


def _branch(
    model: "onnx.ModelProto",
    prefix: str,
    results: Sequence[str],
    weights: "dict[bytes, onnx.TensorProto]",
    placeholder: str,
) -> "onnx.GraphProto":
    """`model` as a branch that answers `results`; what it does not compute is the outer value `placeholder`.

    Its weights move to `weights` (digest of the content to tensor), its inputs become values of the outer
    graph.
    """
    from onnx import TensorProto, helper

    outer = {value.name: value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        digest = _digest(tensor)
        if digest not in weights:
            weights[digest] = type(tensor)()
            weights[digest].CopyFrom(tensor)
            # The exporter numbers folded constants anew in each graph: content tells val_7 from val_7.
            weights[digest].name = f"{tensor.name}.{digest.hex()[:8]}"
        outer[tensor.name] = weights[digest].name
    nodes = []
    for node in model.graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), "a step has no branches"
        renamed = type(node)()
        renamed.CopyFrom(node)
        renamed.name = f"{prefix}/{node.name}"
        renamed.input[:] = [name and outer.get(name, f"{prefix}/{name}") for name in node.input]
        renamed.output[:] = [name and f"{prefix}/{name}" for name in node.output]
        nodes.append(renamed)
    produced = {value.name for value in model.graph.output}
    for name in (name for name in results if name not in produced):
        nodes.append(helper.make_node("Identity", [placeholder], [f"{prefix}/{name}"], f"{prefix}/{name}"))
    outputs = [helper.make_tensor_value_info(f"{prefix}/{name}", TensorProto.FLOAT, None) for name in results]
    return helper.make_graph(nodes, prefix, [], outputs)


def _digest(tensor: "onnx.TensorProto") -> bytes:
    from onnx import numpy_helper

    content = numpy_helper.to_array(tensor)
    return hashlib.sha256(f"{content.dtype} {content.shape} ".encode() + content.tobytes()).digest()


def _opsets(*models: "onnx.ModelProto") -> "list[onnx.OperatorSetIdProto]":
    from onnx import helper

    versions = {opset.domain: opset.version for model in models for opset in model.opset_import}
    return [helper.make_opsetid(domain, version) for domain, version in sorted(versions.items())]
