"""Export the static graphs in the form that Qualcomm AI Hub gives Whisper for phone accelerators, in ONNX and LiteRT.

    folder/mobile/encoder.{onnx,tflite}     see `StaticEncoder`
    folder/mobile/decoder.{onnx,tflite}     see `StaticDecoder`
    folder/mobile/manifest.json             the same tensors and rules as tflite/manifest.json

Multi-head attention is written as one single-head attention per head, whose queries, keys and values have convolutions
of their own. A linear layer is a 1x1 convolution over [1, D, 1, L]. The scale of the scores is part of the queries'
weights.

This layout is for NPUs, whose compilers split it by head. On a CPU the layout of `distill.exporters.tflite_export` is
faster, so there are two `OperatorLayout`s of the same graphs. LiteRT 2.3, 1 thread of a shared AMD EPYC, fp32, median:

                                            BATCHED_    PER_HEAD_
                                            HEADS       CONVOLUTIONS
    alnum, 2 decoder layers, encoder, ms    18.6        23.9
    alnum, step, ms                         0.19        0.21
    whisper-tiny's shape, encoder, ms       419         576
    whisper-tiny's shape, step, ms          11.3        13.3
    alnum, conversion of both graphs, s     13          20

LiteRT's converter turns the matrix product of a single head in the encoder into FULLY_CONNECTED with a computed weight,
which XNNPACK leaves to slower kernels; a product of all heads stays BATCH_MATMUL. ONNX export takes 4 s per graph
(alnum).

L, N tokens, D model width, H heads, K width of a head.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention

from distill.compression.low_rank import expand_pairs
from distill.exporters.static_graphs import (
    AttentionProjections,
    HeadGroups,
    OperatorLayout,
    StaticDecoder,
    StaticEncoder,
)
from distill.exporters.static_interface import decoder_inputs, encoder_inputs, write_manifest

if TYPE_CHECKING:
    from distill.exporters.export_source import ExportSource


class PointwiseLinear(nn.Module):
    """A linear layer written as a 1x1 convolution."""

    def __init__(self, source: nn.Linear):
        super().__init__()
        self.convolution = _pointwise_convolution(source)

    @property
    def weight(self) -> Tensor:
        """The weight [outputs, inputs, 1, 1]."""
        return self.convolution.weight

    def forward(self, x_1LD: Tensor) -> Tensor:
        """Map [1, L, inputs] to [1, L, outputs]."""
        return _channels_last(self.convolution(_channels_first(x_1LD)))


class PerHeadProjections(AttentionProjections):
    """A group per head (G = 1), each with 1x1 convolutions of its own for queries, keys and values."""

    def __init__(self, source: WhisperAttention):
        super().__init__()
        width = source.head_dim
        heads = [slice(head * width, (head + 1) * width) for head in range(source.num_heads)]
        self.query = nn.ModuleList(_pointwise_convolution(source.q_proj, rows, source.scaling) for rows in heads)
        self.key = nn.ModuleList(_pointwise_convolution(source.k_proj, rows) for rows in heads)
        self.value = nn.ModuleList(_pointwise_convolution(source.v_proj, rows) for rows in heads)
        self.out = _pointwise_convolution(source.out_proj)

    def queries(self, x_1LD: Tensor) -> HeadGroups:
        """Return scaled queries [1, 1, L, K] per head."""
        x_1D1L = _channels_first(x_1LD)
        return [head(x_1D1L).permute(0, 2, 3, 1) for head in self.query]

    def keys(self, x_1ND: Tensor) -> HeadGroups:
        """Return transposed keys [1, 1, K, N] per head."""
        x_1D1N = _channels_first(x_1ND)
        return [head(x_1D1N).transpose(1, 2) for head in self.key]

    def values(self, x_1ND: Tensor) -> HeadGroups:
        """Return values [1, 1, N, K] per head."""
        x_1D1N = _channels_first(x_1ND)
        return [head(x_1D1N).permute(0, 2, 3, 1) for head in self.value]

    def forward(self, attended: HeadGroups) -> Tensor:
        """Apply the output projection: [1, 1, L, K] per head to [1, L, D]."""
        return _channels_last(self.out(torch.cat(attended, 3).permute(0, 3, 1, 2)))


PER_HEAD_CONVOLUTIONS = OperatorLayout(PerHeadProjections, PointwiseLinear)

MIN_SHARED_BYTES = 1024
"""`share_constants` leaves smaller constants alone: they are shapes and scales."""


def export_mobile(student: "ExportSource", folder: Path) -> None:
    """Write `folder/mobile/` in float32; quantisation is left to the accelerators' compilers."""
    from distill.exporters.onnx_export import OPSET, silence_onnx_exporter
    from distill.exporters.tflite_export import convert_to_tflite

    model, folder = expand_pairs(student.model, "mobile"), folder / "mobile"
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph, inputs in (
        ("encoder", StaticEncoder(model, PER_HEAD_CONVOLUTIONS), encoder_inputs(model)),
        ("decoder", StaticDecoder(model, PER_HEAD_CONVOLUTIONS), decoder_inputs(model)),
    ):
        (folder / f"{name}.tflite").write_bytes(share_constants(convert_to_tflite(graph, inputs)))
        with torch.no_grad(), silence_onnx_exporter():
            torch.onnx.export(
                graph.eval(), (), str(folder / f"{name}.onnx"), kwargs=inputs, input_names=list(inputs),
                output_names=list(graph(**inputs)), opset_version=OPSET, dynamo=True, external_data=False,
                verbose=False,
            )  # fmt: skip
    files = {runtime: {name: f"{name}.{runtime}" for name in ("encoder", "decoder")} for runtime in ("onnx", "tflite")}
    write_manifest(folder / "manifest.json", model, files)


def share_constants(content: bytes) -> bytes:
    """Return a LiteRT file in which equal constants share one buffer.

    The converter shares constants of equal shape only. Here the head is [V, 1, 1, D] and the token embedding [V, D], so
    that the matrix would be stored twice: 80 MB more in whisper-tiny.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    first_index: dict[bytes, int] = {}
    shared_index = {}
    for i, buffer in enumerate(model.buffers):
        if buffer.data is not None and len(buffer.data) >= MIN_SHARED_BYTES:
            shared_index[i] = first_index.setdefault(bytes(buffer.data), i)
    for tensor in model.subgraphs[0].tensors:
        tensor.buffer = shared_index.get(tensor.buffer, tensor.buffer)
    for i, shared in shared_index.items():
        if shared != i:
            model.buffers[i].data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _pointwise_convolution(source: nn.Linear, rows: slice = slice(None), scale: float = 1.0) -> nn.Conv2d:
    """Return a 1x1 convolution over [1, D, 1, L] for the outputs `rows` of a linear layer, multiplied by `scale`."""
    weight = source.weight.detach()[rows, :, None, None] * scale
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=source.bias is not None)
    convolution.weight.data = weight
    if convolution.bias is not None:
        convolution.bias.data = source.bias.detach()[rows] * scale
    return convolution


def _channels_first(x_1LD: Tensor) -> Tensor:
    """Reshape [1, L, D] to [1, D, 1, L]."""
    return x_1LD.transpose(1, 2).unsqueeze(2)


def _channels_last(x_1D1L: Tensor) -> Tensor:
    """Reshape [1, D, 1, L] to [1, L, D]."""
    return x_1D1L.squeeze(2).transpose(1, 2)
