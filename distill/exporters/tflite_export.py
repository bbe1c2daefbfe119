"""Export Whisper to LiteRT (TFLite): an encoder and a one-token decoder per precision, and a manifest for the host.

    folder/tflite/encoder{,_fp16,_int8}.tflite      see `StaticEncoder`
    folder/tflite/decoder{,_fp16,_int8}.tflite      see `StaticDecoder`
    folder/tflite/manifest.json                     every tensor, the cache, the mask, the audio and the tokens

The files use built-in operators only, and XNNPACK runs all of them but the two embedding lookups. In every precision
the token embedding and the head share one buffer, and inputs and outputs are float32 and int32. fp16 halves the size of
the weights, but XNNPACK converts them to float32 when it loads them, so that it is no faster on a CPU. int8 stores the
weights in 8 bits with a scale per channel, and the kernels quantise activations at run time.

Measured with ai-edge-litert 2.3, 1 thread of a shared AMD EPYC, median, cache of 128 (alnum) and 200 tokens (tiny):

                                            fp32    fp16    int8
    alnum, 2 decoder layers, encoder, ms    18.6    18.9    9.5
    alnum, step, ms                         0.19    0.19    0.14
    alnum, encoder + decoder, MB            13.4    7.0     3.9
    alnum, lowest PSNR to torch, dB         136     88      50
    whisper-tiny's shape, encoder, ms       419     422     238
    whisper-tiny's shape, step, ms          11.3    10.2    4.6
    whisper-tiny's shape, MB                151.0   76.8    40.6

Conversion takes 4 to 11 s per graph. For the larger decoder, the cast to fp16 took another 8 s, quantisation 0.3 s.
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
from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    from distill.exporters.export_source import ExportSource


SUFFIX: dict[Precision, str] = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}

_FLOAT16_OPERATORS = ("FULLY_CONNECTED", "CONV_2D", "EMBEDDING_LOOKUP")
"""Operators whose weights ai_edge_quantizer can cast; no other operator in these graphs has large weights."""


def export_tflite(student: "ExportSource", folder: Path, precisions: Sequence[Precision]) -> None:
    """Write `folder/tflite/`.

    Raises ValueError for an unknown precision, and for a model that is not in float32 on the CPU.
    """
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
    files: dict[str, dict[str, str]] = {
        precision: {name: f"{name}{SUFFIX[precision]}.tflite" for name in ("encoder", "decoder")}
        for precision in precisions
    }
    write_manifest(folder / "manifest.json", model, files)


def convert_to_tflite(graph: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """Convert a graph to a LiteRT file in float32, with the input and output names that it has in torch."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # thirty lines per graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        import litert_torch

        content: bytes = litert_torch.convert(graph.eval(), sample_kwargs=inputs).model_content()
    return content


def quantize_tflite(content: bytes, precision: Precision) -> bytes:
    """Return the LiteRT file with its weights in `precision`."""
    if precision == "fp32":
        return content
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    model_quantizer: Any = quantizer.Quantizer(content)
    if precision == "int8":
        model_quantizer.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8)
    else:
        for operator in _FLOAT16_OPERATORS:
            model_quantizer.add_weight_only_config(
                ".*", qtyping.TFLOperationName(operator), num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
            )
    with redirect_stderr(io.StringIO()):  # one of its two progress bars cannot be disabled
        return bytes(model_quantizer.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)
