"""Whisper to LiteRT (TFLite) files: an encoder and a one-token decoder a precision, with a manifest for their host.

    folder/tflite/encoder{,_fp16,_int8}.tflite      see `StaticEncoder`
    folder/tflite/decoder{,_fp16,_int8}.tflite      see `StaticDecoder`
    folder/tflite/manifest.json                     every tensor, the cache, the mask, the audio and the tokens

Built-in operators only, all but the two lookups XNNPACK's. The token embedding and the head share one buffer in every
precision.
Inputs and outputs are float32 and int32 in every precision. fp16 halves the weights, which XNNPACK widens as it loads
them, so that it is no faster on a CPU; int8 stores them in 8 bits a channel, and the kernels quantise activations as
they go.

Measured with ai-edge-litert 2.3, 1 thread of a shared AMD EPYC, p50, cache of 128 (alnum) and 200 tokens (tiny):

                                            fp32    fp16    int8
    alnum, 2 decoder layers, encoder, ms    18.6    18.9    9.5
    alnum, step, ms                         0.19    0.19    0.14
    alnum, encoder + decoder, MB            13.4    7.0     3.9
    alnum, smaller PSNR to torch, dB        136     88      50
    whisper-tiny's shape, encoder, ms       419     422     238
    whisper-tiny's shape, step, ms          11.3    10.2    4.6
    whisper-tiny's shape, MB                151.0   76.8    40.6

Conversion takes 4 to 11 s a graph; the larger decoder took 8 s more to cast to fp16, 0.3 s to quantise.
"""

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.exporters.static_graphs import StaticDecoder, StaticEncoder
from distill.exporters.static_interface import decoder_inputs, encoder_inputs, write_manifest

if TYPE_CHECKING:
    from distill.exporters.export_source import ExportSource


SUFFIX = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}

_FLOAT16_OPERATORS = ("FULLY_CONNECTED", "CONV_2D", "EMBEDDING_LOOKUP")
"""Those whose weights ai_edge_quantizer can cast; no other in these graphs has any of size."""


def export_tflite(student: "ExportSource", folder: Path, precisions: Sequence[str]) -> None:
    """Write `folder/tflite/`. Raises ValueError for an unknown precision and for a model not in float32 on the CPU."""
    if unknown := [precision for precision in precisions if precision not in SUFFIX]:
        raise ValueError(f"precisions: expected some of {', '.join(SUFFIX)}, found {', '.join(unknown)}")
    model = student.model
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"model: expected float32 on the CPU, found {model.dtype} on {model.device}")
    folder = folder / "tflite"
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph, inputs in (
        ("encoder", StaticEncoder(model), encoder_inputs(model)),
        ("decoder", StaticDecoder(model), decoder_inputs(model)),
    ):
        content = convert_to_tflite(graph, inputs)
        for precision in precisions:
            (folder / f"{name}{SUFFIX[precision]}.tflite").write_bytes(quantize_tflite(content, precision))
    files = {
        precision: {name: f"{name}{SUFFIX[precision]}.tflite" for name in ("encoder", "decoder")}
        for precision in precisions
    }
    write_manifest(folder / "manifest.json", model, files)


def convert_to_tflite(graph: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """A graph as a LiteRT file in float32, its inputs and outputs named as in torch."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # thirty lines a graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        import litert_torch

        content: bytes = litert_torch.convert(graph.eval(), sample_kwargs=inputs).model_content()
    return content


def quantize_tflite(content: bytes, precision: str) -> bytes:
    """The same file with weights in `precision`."""
    if precision == "fp32":
        return content
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    work: Any = quantizer.Quantizer(content)
    if precision == "int8":
        work.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8)
    else:
        for operator in _FLOAT16_OPERATORS:
            work.add_weight_only_config(
                ".*", qtyping.TFLOperationName(operator), num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
            )
    with redirect_stderr(io.StringIO()):  # one of its two progress bars cannot be turned off
        return bytes(work.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)
