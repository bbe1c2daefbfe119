"""Whisper to the folders that OpenVINO GenAI and optimum-intel load: an encoder, one stateful decoder, the tokenizer.

    folder/openvino-{fp32,fp16,int8}/openvino_encoder_model.{xml,bin}     input_features -> last_hidden_state
    folder/openvino-{fp32,fp16,int8}/openvino_decoder_model.{xml,bin}     input_ids, encoder_hidden_states, beam_idx
                                                                          -> logits
    folder/openvino-{fp32,fp16,int8}/openvino_{tokenizer,detokenizer}.{xml,bin}, and the JSONs of `folder`

The cache lives in the decoder as states, empty after `reset_state()`. A ReadValue is initialised by a graph that runs
only on the first step after a reset: for the cross-attention that graph is its key and value projections, so they run
once a clip and their weights are stored once. Measured with OpenVINO 2026.4, 1 thread of an AMD EPYC that others
shared, 2 decoder layers, float32, ms a step at positions 9 to 64:

                                                     alnum student    whisper-tiny's shape
    projections run at every step                    1.75             36.8
    projections initialise a state                   0.42             12.0
    the same, cross-attention as one fused operator  0.54             13.7
    torch                                            1.32             21.9

Hence the cross-attention stays a pair of matrix products. OpenVINO itself fuses the encoder's attention and the
decoder's self-attention; the latter then joins the states to a cache that grows in place.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, P past tokens, D width, H heads, K width of a head.
"""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from distill.exporters.export_source import ExportSource
from distill.exporters.whisper_graphs import DecoderFirstGraph, DecoderWithPastGraph, EncoderGraph
from recipes.core.atomic_files import write_json
from recipes.schema.export_section import Precision

if TYPE_CHECKING:
    import openvino


def export_openvino(student: ExportSource, folder: Path, precisions: Sequence[Precision]) -> None:
    """Write `folder/openvino-{precision}/` for each precision; int8 takes a few dozen clips of `student.calibration`.

    Weights are float32 in fp32, float16 in fp16; in int8 see `openvino_quantize`. Raises ValueError for an untied head,
    UserError where int8 finds no calibration audio.
    """
    import openvino

    from distill.exporters.openvino_quantize import calibration_mels, quantize_openvino

    mels = calibration_mels(student) if "int8" in precisions else []  # first, as it is what may be missing
    encoder, decoder = encoder_model(student.model), decoder_model(student.model)
    tokenizers = tokenizer_models(student.source)
    for precision in precisions:
        target = folder / f"openvino-{precision}"
        target.mkdir(parents=True, exist_ok=True)
        for file in (*folder.glob("*.json"), *folder.glob("*.txt")):
            shutil.copyfile(file, target / file.name)
        models = {"encoder_model": encoder, "decoder_model": decoder}
        if precision == "int8":
            models["encoder_model"], models["decoder_model"], choice = quantize_openvino(
                encoder, decoder, mels, student.smooth_quant
            )
            write_json(target / "quantization.json", choice)
        for name, model in models.items():
            openvino.save_model(model, target / f"openvino_{name}.xml", compress_to_fp16=precision != "fp32")
        for name, model in tokenizers.items():
            openvino.save_model(model, target / f"openvino_{name}.xml", compress_to_fp16=False)


def encoder_model(model: WhisperForConditionalGeneration) -> "openvino.Model":
    """The encoder as an openvino.Model: input_features [B, F, T] to last_hidden_state [B, S, D]."""
    config = model.config
    frames = 2 * config.max_source_positions
    mel_BFT = torch.zeros(2, config.num_mel_bins, frames)
    encoder = _convert(EncoderGraph(model), (mel_BFT,), [[-1, config.num_mel_bins, frames]])
    _named(encoder.input(0), "input_features")
    _named(encoder.output(0), "last_hidden_state")
    return encoder


def decoder_model(model: WhisperForConditionalGeneration) -> "openvino.Model":
    """The decoder as an openvino.Model with states.

    input_ids int64 [B, L], encoder_hidden_states [B, S, D] and beam_idx int32 [B], the row of the step before that each
    row continues, to logits [B, L, V]. States: past_key_values.N.decoder.{key,value} [B, H, P, K] and
    past_key_values.N.encoder.{key,value} [B, H, S, K]. The latter are not reordered: the beams of a clip hear the same.
    """
    import openvino
    from openvino import opset13 as ops

    config = model.config
    positions, heads, width = config.max_source_positions, config.decoder_attention_heads, config.d_model
    ids_BL, encoder_BSD = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, positions, width)
    own, cross = (torch.zeros(2, heads, length, width // heads) for length in (5, positions))
    caches = [tensor.clone() for _ in range(config.decoder_layers) for tensor in (own, own, cross, cross)]
    shapes = [[-1, heads, -1, width // heads]] * 2 + [[-1, heads, positions, width // heads]] * 2
    first = _convert(DecoderFirstGraph(model), (ids_BL, encoder_BSD), [[-1, -1], [-1, positions, width]])
    step = _convert(DecoderWithPastGraph(model), (ids_BL, *caches), [[-1, -1], *(shapes * config.decoder_layers)])
    for node in first.get_ops():  # only the projections of this graph are kept; their names may not meet the step's
        node.set_friendly_name(f"cross/{node.get_friendly_name()}")

    beam_idx = ops.parameter([-1], openvino.Type.i32)
    batch = ops.gather(ops.shape_of(step.input(0), "i64"), ops.constant([0]), ops.constant(0))
    shape = ops.concat([batch, ops.constant([heads, 0, width // heads])], 0)
    empty = ops.broadcast(ops.constant(0.0, openvino.Type.f32), shape)
    _lend_safely(first.input(1))
    states = []
    for index, past in enumerate(step.inputs[1:]):
        layer, part = divmod(index, 4)
        name = f"past_key_values.{layer}.{('decoder', 'encoder')[part // 2]}.{('key', 'value')[part % 2]}"
        start = empty if part < 2 else _producer(first.output(1 + index))
        read = ops.read_value(start, name, openvino.Type.f32, openvino.PartialShape(shapes[part]))
        before = ops.gather(read, beam_idx, ops.constant(0)) if part < 2 else read
        after = _producer(step.output(1 + 2 * layer + part)) if part < 2 else read
        for consumer in past.get_target_inputs():
            consumer.replace_source_output(before.output(0))
        states.append(ops.assign(after, name))
    inputs = {"input_ids": step.input(0), "encoder_hidden_states": first.input(1), "beam_idx": beam_idx.output(0)}
    parameters = [_named(value, name).get_node() for name, value in inputs.items()]
    decoder = openvino.Model([_named(step.output(0), "logits").get_node()], states, parameters, "decoder")
    # The CPU plugin would keep keys and values in 8 bits: alnum's logits 140.8 -> 62.1 dB, and 0.42 -> 0.54 ms a step,
    # for a cache of 448 positions at most.
    decoder.set_rt_info("f32", ["runtime_options", "KV_CACHE_PRECISION"])
    return decoder


def tokenizer_models(source: Path) -> "dict[str, openvino.Model]":
    """Text to tokens and tokens to text, by file name, of a checkpoint's tokenizer."""
    from openvino_tokenizers import convert_tokenizer

    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    return {"tokenizer": tokenizer, "detokenizer": detokenizer}


def _convert(graph: nn.Module, inputs: tuple[Tensor, ...], shapes: list[list[int]]) -> "openvino.Model":
    import openvino

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer on shapes it takes for constants, which they are
        return openvino.convert_model(
            graph.eval(), example_input=inputs, input=[openvino.PartialShape(shape) for shape in shapes]
        )


def _lend_safely(states: Any) -> None:
    # Where the CPU plugin of OpenVINO 2026.4 computes in bfloat16, the graph that initialises a state goes on reading
    # the address of the first clip's input: later clips lent in other arrays were heard with the first one's keys and
    # values. An elementwise operator takes float32 as it is and reads the right one; clamping so wide changes nothing.
    from openvino import opset13 as ops

    consumers = states.get_target_inputs()
    clamped = ops.clamp(states, -1e30, 1e30)
    for consumer in consumers:
        consumer.replace_source_output(clamped.output(0))


def _named(value: Any, name: str) -> Any:
    value.set_names({name})
    value.get_node().set_friendly_name(name)
    return value


def _producer(result: Any) -> Any:
    """The node whose only output a model gives as `result`."""
    return result.get_node().input_value(0).get_node()
