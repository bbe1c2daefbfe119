"""Export Whisper to the ONNX files that transformers.js and optimum load: an encoder and a merged decoder.

    folder/onnx/encoder_model{,_fp16,_quantized}.onnx           input_features -> last_hidden_state
    folder/onnx/decoder_model_merged{,_fp16,_quantized}.onnx    see `onnx_merge`

Each weight is stored once. A model whose weights reach 2 GB keeps them in a separate file, FILE_data, because protobuf
ends at 2 GB. Inputs and outputs are float32 in every precision.

Of torch's two exporters, the dynamo exporter is used. Measured with torch 2.13, ONNX Runtime 1.31, 1 thread of an
AMD EPYC, dynamic batch, opset 18 (dynamo) and 17 (TorchScript):

                                            dynamo      TorchScript
    whisper-tiny, encoder, batch 1 / 2, ms  415 / 883   418 / 862
    whisper-tiny, step without its head, ms 0.94        1.10
    whisper-tiny, step, nodes               122         270
    alnum teacher, encoder / step, ms       20.7 / 0.32 19.4 / 0.34
    export of one graph, s                  4           0.2

The 1.5-fold slowdown of the encoder that is reported for the dynamo exporter does not occur on these plain graphs.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, P past tokens, D model width, H heads, K width of a
head, V vocabulary.
"""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention

from distill.exporters.whisper_graphs import DecoderFirstGraph, DecoderWithPastGraph, EncoderGraph
from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


SUFFIX: dict[Precision, str] = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
"""File name suffixes of transformers.js, for its dtypes fp32, fp16 and q8."""

OPSET = 20
"""The first opset with Gelu. Older ones write it as five operators, which ONNX Runtime does not fuse in the order that
the dynamo exporter writes them. alnum's encoder: 19.9 -> 19.0 ms, its decoder step: 0.53 -> 0.49 ms. Needs ONNX Runtime
1.17 (2024)."""

SINGLE_FILE_BYTES = 2**31 - 2**20
"""Models with at least this many bytes of weights are saved with external data."""


def export_onnx(
    model: WhisperForConditionalGeneration, folder: Path, precisions: Sequence[Precision]
) -> dict[Precision, list[Path]]:
    """Write `folder/onnx/*.onnx` and return the files of each precision, the encoder first.

    `model` must be on the CPU in float32 with a tied head. Equal weights give equal bytes. Raises ValueError for
    another dtype or device, for an untied head, and for an unknown precision.
    """
    from distill.exporters.onnx_merge import merge_decoder, strip_debug_information
    from distill.exporters.onnx_quantize import quantize_onnx, store_in_precision

    if unknown := [precision for precision in precisions if precision not in SUFFIX]:
        raise ValueError(f"precisions: expected some of {', '.join(SUFFIX)}, found {', '.join(unknown)}")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(
            f"model: expected float32 on the CPU, found {model.dtype} on {model.device}; call model.float().cpu()"
        )
    folder = folder / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    encoder, first, past = (strip_debug_information(graph) for graph in trace_graphs(model))
    embedding_VD = model.model.decoder.embed_tokens.weight.detach().numpy()
    files: dict[Precision, list[Path]] = {}
    for precision in precisions:
        graphs = [encoder, first, past]
        if precision == "int8":
            with tempfile.TemporaryDirectory() as scratch:
                graphs = [quantize_onnx(graph, Path(scratch)) for graph in graphs]
        models = {
            "encoder_model": graphs[0],
            "decoder_model_merged": merge_decoder(graphs[1], graphs[2], embedding_VD, precision),
        }
        files[precision] = []
        for name, graph in models.items():
            files[precision] += _save(store_in_precision(graph, precision), folder / f"{name}{SUFFIX[precision]}.onnx")
    return files


def trace_graphs(
    model: WhisperForConditionalGeneration,
) -> "tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]":
    """Trace the encoder, the first decoder step and the cached decoder step in float32.

    The decoder steps map embedded tokens to hidden states: token embedding and head are added by `merge_decoder`.
    """
    config = model.config
    heads, layers = config.decoder_attention_heads, config.decoder_layers
    # Batch 2, 3 tokens and 5 past tokens, because torch.export would treat sizes 0 and 1 as constants.
    positions = config.max_source_positions
    mel_BFT = torch.zeros(2, config.num_mel_bins, 2 * positions)
    embedded_BLD = torch.zeros(2, 3, config.d_model)
    encoder_BSD = torch.zeros(2, positions, config.d_model)
    self_BHPK = torch.zeros(2, heads, 5, config.d_model // heads)
    cross_BHSK = torch.zeros(2, heads, positions, config.d_model // heads)
    cache = [tensor.clone() for _ in range(layers) for tensor in (self_BHPK, self_BHPK, cross_BHSK, cross_BHSK)]
    dynamic = torch.export.Dim.DYNAMIC
    batch, batch_and_length, batch_and_positions = {0: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic, 2: dynamic}
    return (
        _trace_graph(_FusedEncoder(model), (mel_BFT,), ["input_features"], ["last_hidden_state"], (batch,)),
        _trace_graph(
            _DecoderBody(DecoderFirstGraph(model)),
            (embedded_BLD, encoder_BSD),
            ["embedded", "encoder_hidden_states"],
            ["hidden", *cache_names("present", layers)],
            ((batch_and_length, batch_and_length),),
        ),
        _trace_graph(
            _DecoderBody(DecoderWithPastGraph(model)),
            (embedded_BLD, *cache),
            ["embedded", *cache_names("past_key_values", layers)],
            ["hidden", *(name for name in cache_names("present", layers) if ".decoder." in name)],
            ((batch_and_length, *([batch_and_positions] * len(cache))),),
        ),
    )


def cache_names(prefix: str, layers: int) -> list[str]:
    """Return optimum's names of the cache tensors [B, H, P or S, K], in the order of `DecoderFirstGraph.body`."""
    tensors = [(attention, part) for attention in ("decoder", "encoder") for part in ("key", "value")]
    return [f"{prefix}.{layer}.{attention}.{part}" for layer in range(layers) for attention, part in tensors]


class _FusedEncoder(EncoderGraph):
    """The encoder with each attention as one operator of ONNX Runtime, which computes it in blocks of queries.

    As separate operators, attention holds two copies of its weights [B, H, S, S] in memory: 144 MB at whisper-base's
    shape. Peak memory of the encoder's process (base, 30 s, ONNX Runtime 1.31, two threads): float32 475 -> 247 MB,
    int8 201 -> 190 MB. Time: 508 -> 487 ms and 290 -> 301 ms, equal within noise.
    """

    def self_attention(self, attention: WhisperAttention, x_BSD: Tensor) -> Tensor:
        """See `EncoderGraph.self_attention`. For tracing only: run in torch, it computes no values."""
        projected = [project(x_BSD) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
        shape = projected[0].shape  # narrower than the model width where heads have been pruned
        options = {"num_heads": attention.num_heads, "scale": float(attention.scaling)}
        context_BSD = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention", projected, options, dtype=x_BSD.dtype, shape=shape, version=1
        )
        return attention.out_proj(context_BSD)


class _DecoderBody(nn.Module):
    """A decoder step without token embedding and head, which the merged file holds once, outside its branches."""

    def __init__(self, step: DecoderFirstGraph | DecoderWithPastGraph):
        super().__init__()
        self.step = step

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.step.body(*inputs)


def _trace_graph(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[Any, ...],
) -> "onnx.ModelProto":
    with torch.no_grad(), silence_onnx_exporter():
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def silence_onnx_exporter() -> "Iterator[None]":
    """Suppress the warnings that torch's ONNX exporter writes for each graph."""
    # Four lines per graph about torchvision's operators, which Whisper does not use, and a deprecation within torch.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _save(model: "onnx.ModelProto", path: Path) -> list[Path]:
    """Save a model, its weights in a second file where they are too large for one, and return the files."""
    import onnx

    data = path.with_name(f"{path.name}_data")
    data.unlink(missing_ok=True)
    # Summed over the tensors because ByteSize() itself fails beyond 2 GB.
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < SINGLE_FILE_BYTES:
        onnx.save(model, path)
        return [path]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving removes the weights, and the next precision starts from the same graph
    onnx.save(copy, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    return [path, data]
