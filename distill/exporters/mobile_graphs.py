"""The static graphs as Qualcomm AI Hub writes Whisper for phone accelerators, in ONNX and LiteRT.

    folder/mobile/encoder.{onnx,tflite}     see `StaticEncoder`
    folder/mobile/decoder.{onnx,tflite}     see `StaticDecoder`
    folder/mobile/manifest.json             the same tensors and rules as tflite/manifest.json

Multi-head attention is a loop over heads of single-head attention, whose queries, keys and values are convolutions of
their own; a linear layer is a 1x1 convolution over [1, D, 1, L]; the scale of the scores lies in the queries' weights.

This form is for NPUs, whose compilers split it by head. On a CPU the plain one of `distill.exporters.tflite_export` is
faster, so that both are kept, one `Form` each of the same graphs. LiteRT 2.3, 1 thread of a shared AMD EPYC, fp32, p50:

                                            batched     mobile
    alnum, 2 decoder layers, encoder, ms    18.6        23.9
    alnum, step, ms                         0.19        0.21
    whisper-tiny's shape, encoder, ms       419         576
    whisper-tiny's shape, step, ms          11.3        13.3
    alnum, conversion of both graphs, s     13          20

LiteRT's converter turns a product of one head in the encoder into FULLY_CONNECTED with a computed weight, which XNNPACK
leaves to slower kernels; a product of all heads stays BATCH_MATMUL. ONNX export takes 4 s a graph (alnum).

L, N tokens, D width, H heads, K width of a head.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention

from distill.compression.low_rank import expand_pairs
from distill.exporters.static_graphs import Attention, Form, Groups, StaticDecoder, StaticEncoder
from distill.exporters.static_interface import decoder_inputs, encoder_inputs, write_manifest

if TYPE_CHECKING:
    from distill.exporters.export_source import ExportSource


class Pointwise(nn.Module):
    """A linear layer as a 1x1 convolution."""

    def __init__(self, source: nn.Linear):
        super().__init__()
        self.convolution = _pointwise(source)

    @property
    def weight(self) -> Tensor:
        """[outputs, inputs, 1, 1]."""
        return self.convolution.weight

    def forward(self, x_1LD: Tensor) -> Tensor:
        """[1, L, inputs] to [1, L, outputs]."""
        return _rows(self.convolution(_columns(x_1LD)))


class HeadwiseAttention(Attention):
    """One group a head."""

    def __init__(self, source: WhisperAttention):
        super().__init__()
        width = source.head_dim
        heads = [slice(head * width, (head + 1) * width) for head in range(source.num_heads)]
        self.query = nn.ModuleList(_pointwise(source.q_proj, rows, source.scaling) for rows in heads)
        self.key = nn.ModuleList(_pointwise(source.k_proj, rows) for rows in heads)
        self.value = nn.ModuleList(_pointwise(source.v_proj, rows) for rows in heads)
        self.out = _pointwise(source.out_proj)

    def queries(self, x_1LD: Tensor) -> Groups:
        """[1, 1, L, K] a head."""
        x_1D1L = _columns(x_1LD)
        return [head(x_1D1L).permute(0, 2, 3, 1) for head in self.query]

    def keys(self, x_1ND: Tensor) -> Groups:
        """[1, 1, K, N] a head."""
        x_1D1N = _columns(x_1ND)
        return [head(x_1D1N).transpose(1, 2) for head in self.key]

    def values(self, x_1ND: Tensor) -> Groups:
        """[1, 1, N, K] a head."""
        x_1D1N = _columns(x_1ND)
        return [head(x_1D1N).permute(0, 2, 3, 1) for head in self.value]

    def forward(self, mixed: Groups) -> Tensor:
        """[1, 1, L, K] a head to [1, L, D]."""
        return _rows(self.out(torch.cat(mixed, 3).permute(0, 3, 1, 2)))


MOBILE = Form(HeadwiseAttention, Pointwise)

SHARED_BYTES = 1024
"""Smaller constants are shapes and scales, which are not worth the search."""


def export_mobile(student: "ExportSource", folder: Path) -> None:
    """Write `folder/mobile/` in float32: the accelerators' own compilers quantise."""
    from distill.exporters.onnx_export import OPSET, quiet
    from distill.exporters.tflite_export import convert_to_tflite

    model, folder = expand_pairs(student.model, "mobile"), folder / "mobile"
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph, inputs in (
        ("encoder", StaticEncoder(model, MOBILE), encoder_inputs(model)),
        ("decoder", StaticDecoder(model, MOBILE), decoder_inputs(model)),
    ):
        (folder / f"{name}.tflite").write_bytes(share_constants(convert_to_tflite(graph, inputs)))
        with torch.no_grad(), quiet():
            torch.onnx.export(
                graph.eval(), (), str(folder / f"{name}.onnx"), kwargs=inputs, input_names=list(inputs),
                output_names=list(graph(**inputs)), opset_version=OPSET, dynamo=True, external_data=False,
                verbose=False,
            )  # fmt: skip
    files = {runtime: {name: f"{name}.{runtime}" for name in ("encoder", "decoder")} for runtime in ("onnx", "tflite")}
    write_manifest(folder / "manifest.json", model, files)


def share_constants(content: bytes) -> bytes:
    """A LiteRT file in which equal constants lie in one buffer.

    The converter shares those of one shape alone, so the head, [V, 1, 1, D] here, would be stored beside the token
    table, [V, D]: 80 MB more in whisper-tiny.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    first: dict[bytes, int] = {}
    kept = {}
    for i, buffer in enumerate(model.buffers):
        if buffer.data is not None and len(buffer.data) >= SHARED_BYTES:
            kept[i] = first.setdefault(bytes(buffer.data), i)
    for tensor in model.subgraphs[0].tensors:
        tensor.buffer = kept.get(tensor.buffer, tensor.buffer)
    for i in (i for i, other in kept.items() if other != i):
        model.buffers[i].data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _pointwise(source: nn.Linear, rows: slice = slice(None), scale: float = 1.0) -> nn.Conv2d:
    """These outputs of a linear layer, times `scale`, over [1, D, 1, L]."""
    weight = source.weight.detach()[rows, :, None, None] * scale
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=source.bias is not None)
    convolution.weight.data = weight
    if convolution.bias is not None:
        convolution.bias.data = source.bias.detach()[rows] * scale
    return convolution


def _columns(x_1LD: Tensor) -> Tensor:
    """[1, L, D] to [1, D, 1, L]."""
    return x_1LD.transpose(1, 2).unsqueeze(2)


def _rows(x_1D1L: Tensor) -> Tensor:
    """[1, D, 1, L] to [1, L, D]."""
    return x_1D1L.squeeze(2).transpose(1, 2)
