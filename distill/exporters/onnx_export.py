"""Whisper to ONNX files that transformers.js and optimum load: an encoder and a merged decoder a precision.

    folder/onnx/encoder_model{,_fp16,_quantized}.onnx           input_features -> last_hidden_state
    folder/onnx/decoder_model_merged{,_fp16,_quantized}.onnx    see `onnx_merge`

Weights are stored once; a file of 2 GB or more keeps them beside it in FILE_data, as protobuf ends at 2 GB.
Inputs and outputs are float32 in every precision.

Of torch's two exporters the dynamo one is used. Measured with torch 2.13, ONNX Runtime 1.31, 1 thread of an
AMD EPYC, dynamic batch, opset 18 (dynamo) and 17 (TorchScript):

                                        dynamo      TorchScript
    tiny, encoder, batch 1 / 2, ms      415 / 883   418 / 862
    tiny, step without its head, ms     0.94        1.10
    tiny, step, nodes                   122         270
    alnum teacher, encoder / step, ms   20.7 / 0.32 19.4 / 0.34
    export of one graph, s              4           0.2

On these plain graphs dynamo shows no 1.5-fold penalty in the encoder.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, P past tokens, D width, H heads,
K width of a head.
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
"""Names of transformers.js: dtype fp32, fp16, q8."""

OPSET = 20
"""The first with Gelu. Older ones spell it in five operators, which ONNX Runtime does not join again in the
order the dynamo exporter writes them: alnum's encoder 19.9 -> 19.0 ms, step 0.53 -> 0.49 ms. Needs ONNX
Runtime 1.17 (2024)."""

SINGLE_FILE_BYTES = 2**31 - 2**20


def export_onnx(
    model: WhisperForConditionalGeneration, folder: Path, precisions: Sequence[Precision]
) -> dict[Precision, list[Path]]:
    """Write `folder/onnx/*.onnx` and give the files of each precision, the encoder first.

    `model` is on the CPU in float32 with a tied head. Equal weights give equal bytes. Raises ValueError for
    another dtype or device, for an untied head, and for an unknown precision.
    """
    from distill.exporters.onnx_merge import merge_decoder, strip_debug_information
    from distill.exporters.onnx_quantize import quantize_onnx, store_in_precision

    if unknown := [precision for precision in precisions if precision not in SUFFIX]:
        raise ValueError(f"precisions: expected some of {', '.join(SUFFIX)}, found {', '.join(unknown)}")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(
            f"model: expected float32 on the CPU, found {model.dtype} on {model.device}; model.float().cpu()"
        )
    folder = folder / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    encoder, first, past = (strip_debug_information(graph) for graph in trace(model))
    embedding_VD = model.model.decoder.embed_tokens.weight.detach().numpy()
    files: dict[Precision, list[Path]] = {}
    for precision in precisions:
        parts = [encoder, first, past]
        if precision == "int8":
            with tempfile.TemporaryDirectory() as scratch:
                parts = [quantize_onnx(part, Path(scratch)) for part in parts]
        models = {
            "encoder_model": parts[0],
            "decoder_model_merged": merge_decoder(parts[1], parts[2], embedding_VD, precision),
        }
        files[precision] = []
        for name, graph in models.items():
            files[precision] += _save(store_in_precision(graph, precision), folder / f"{name}{SUFFIX[precision]}.onnx")
    return files


def trace(
    model: WhisperForConditionalGeneration,
) -> "tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]":
    """Encoder, first step and cached step as float32 graphs; the steps go from embedded to hidden."""
    config = model.config
    heads, layers = config.decoder_attention_heads, config.decoder_layers
    # Batch 2, 3 tokens, 5 past ones: torch.export would take 0 and 1 for constants.
    positions = config.max_source_positions
    mel_BFT = torch.zeros(2, config.num_mel_bins, 2 * positions)
    embedded_BLD = torch.zeros(2, 3, config.d_model)
    encoder_BSD = torch.zeros(2, positions, config.d_model)
    own = torch.zeros(2, heads, 5, config.d_model // heads)
    cross = torch.zeros(2, heads, positions, config.d_model // heads)
    caches = [tensor.clone() for _ in range(layers) for tensor in (own, own, cross, cross)]
    batch, batch_1, batch_2 = ({0: torch.export.Dim.DYNAMIC, **more} for more in ({}, _dynamic(1), _dynamic(2)))
    return (
        _trace(_FusedEncoder(model), (mel_BFT,), ["input_features"], ["last_hidden_state"], (batch,)),
        _trace(
            _Body(DecoderFirstGraph(model)),
            (embedded_BLD, encoder_BSD),
            ["embedded", "encoder_hidden_states"],
            ["hidden", *cache_names("present", layers)],
            ((batch_1, batch_1),),
        ),
        _trace(
            _Body(DecoderWithPastGraph(model)),
            (embedded_BLD, *caches),
            ["embedded", *cache_names("past_key_values", layers)],
            ["hidden", *(name for name in cache_names("present", layers) if ".decoder." in name)],
            ((batch_1, *([batch_2] * len(caches))),),
        ),
    )


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the cache tensors [B, H, P or S, K] in the order of `graphs`, in the notation of optimum."""
    sides = [(side, part) for side in ("decoder", "encoder") for part in ("key", "value")]
    return [f"{prefix}.{layer}.{side}.{part}" for layer in range(layers) for side, part in sides]


class _FusedEncoder(EncoderGraph):
    """Attention as one operator of ONNX Runtime, which takes the queries in blocks.

    Written out, its weights [B, H, S, S] lie in memory twice: at whisper-base's shape 144 MB. Peak of the encoder's
    process (base, 30 s, ONNX Runtime 1.31, two threads): float32 475 -> 247 MB, int8 201 -> 190 MB; 508 -> 487 ms and
    290 -> 301 ms, equal within noise.
    """

    def attend(self, attention: WhisperAttention, x_BSD: Tensor) -> Tensor:
        """See `EncoderGraph.attend`; for tracing alone, in torch it gives no values."""
        projected = [project(x_BSD) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
        inner = projected[0].shape  # of pruned heads narrower than the stream
        options = {"num_heads": attention.num_heads, "scale": float(attention.scaling)}
        mixed_BSD = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention", projected, options, dtype=x_BSD.dtype, shape=inner, version=1
        )
        return attention.out_proj(mixed_BSD)


class _Body(nn.Module):
    """A step between token lookup and head; those two stand once outside the branches of the merged file."""

    def __init__(self, step: DecoderFirstGraph | DecoderWithPastGraph):
        super().__init__()
        self.step = step

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.step.body(*inputs)


def _dynamic(axis: int) -> dict[int, Any]:
    return {axis: torch.export.Dim.DYNAMIC}


def _trace(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    names: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
) -> "onnx.ModelProto":
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def quiet() -> "Iterator[None]":
    """Without torch's remarks on each graph."""
    # Four lines a graph about torchvision's operators, which no Whisper has, and a deprecation inside torch itself.
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
    import onnx

    data = path.with_name(f"{path.name}_data")
    data.unlink(missing_ok=True)
    # Summed by hand: ByteSize() itself fails beyond 2 GB.
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < SINGLE_FILE_BYTES:
        onnx.save(model, path)
        return [path]
    moved = onnx.ModelProto()
    moved.CopyFrom(model)  # saving takes the weights out, and the next precision starts from the same graph
    onnx.save(moved, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    return [path, data]
