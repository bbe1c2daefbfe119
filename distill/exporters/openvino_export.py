"""Export Whisper to the folders that OpenVINO GenAI and optimum-intel load: encoder, stateful decoder, tokenizer.

    folder/openvino-{fp32,fp16,int8}/openvino_encoder_model.{xml,bin}     input_features -> last_hidden_state
    folder/openvino-{fp32,fp16,int8}/openvino_decoder_model.{xml,bin}     input_ids, encoder_hidden_states, beam_idx
                                                                          -> logits
    folder/openvino-{fp32,fp16,int8}/openvino_{tokenizer,detokenizer}.{xml,bin}, and the JSON files of `folder`

The decoder keeps the cache as states, which are empty after `reset_state()`. A ReadValue is initialised by a subgraph
that runs only on the first step after a reset. For the cross-attention this subgraph is the key and value projection,
so that it runs once per clip and its weights are stored once. Measured with OpenVINO 2026.4, 1 thread of a shared AMD
EPYC, 2 decoder layers, float32, ms per step at positions 9 to 64:

                                                     alnum student    whisper-tiny's shape
    projections run at every step                    1.75             36.8
    projections initialise a state (used)            0.42             12.0
    the same, cross-attention as one fused operator  0.54             13.7
    torch                                            1.32             21.9

Hence the cross-attention stays a pair of matrix products. OpenVINO itself fuses the encoder's attention and the
decoder's self-attention; the fused self-attention turns the states into a cache that grows in place.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, P past tokens, D model width, H heads, K width of a
head, V vocabulary.
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
    """Write `folder/openvino-{precision}/` for each precision.

    Weights are float32 in fp32 and float16 in fp16. int8 is described in `openvino_quantize` and needs a few dozen
    clips of `student.calibration`. Raises ValueError for an untied head, and UserError if int8 is asked for and there
    is no calibration audio.
    """
    import openvino

    from distill.exporters.openvino_quantize import calibration_mels, quantize_openvino

    mels = calibration_mels(student) if "int8" in precisions else []  # read first, because the audio may be missing
    encoder, decoder = encoder_model(student.model), decoder_model(student.model)
    tokenizers = tokenizer_models(student.source)
    for precision in precisions:
        target = folder / f"openvino-{precision}"
        target.mkdir(parents=True, exist_ok=True)
        for file in (*folder.glob("*.json"), *folder.glob("*.txt")):
            shutil.copyfile(file, target / file.name)
        models = {"encoder_model": encoder, "decoder_model": decoder}
        if precision == "int8":
            quantized = quantize_openvino(encoder, decoder, mels, student.smooth_quant)
            models = {"encoder_model": quantized.encoder, "decoder_model": quantized.decoder}
            write_json(target / "quantization.json", quantized.report())
        for name, model in models.items():
            openvino.save_model(model, target / f"openvino_{name}.xml", compress_to_fp16=precision != "fp32")
        for name, model in tokenizers.items():
            openvino.save_model(model, target / f"openvino_{name}.xml", compress_to_fp16=False)


def encoder_model(model: WhisperForConditionalGeneration) -> "openvino.Model":
    """Convert the encoder to an openvino.Model from input_features [B, F, T] to last_hidden_state [B, S, D]."""
    config = model.config
    frames = 2 * config.max_source_positions
    mel_BFT = torch.zeros(2, config.num_mel_bins, frames)
    encoder = _convert(EncoderGraph(model), (mel_BFT,), [[-1, config.num_mel_bins, frames]])
    _set_name(encoder.input(0), "input_features")
    _set_name(encoder.output(0), "last_hidden_state")
    return encoder


def decoder_model(model: WhisperForConditionalGeneration) -> "openvino.Model":
    """Convert the decoder to an openvino.Model that keeps the cache as states.

    Inputs: input_ids int64 [B, L], encoder_hidden_states [B, S, D], and beam_idx int32 [B], the row of the previous
    step that each row continues. Output: logits [B, L, V]. States: past_key_values.N.decoder.{key,value} [B, H, P, K]
    and past_key_values.N.encoder.{key,value} [B, H, S, K]. beam_idx does not reorder the encoder's states, because all
    beams of a clip share its audio.
    """
    import openvino
    from openvino import opset13 as ops

    config = model.config
    positions, heads, width = config.max_source_positions, config.decoder_attention_heads, config.d_model
    ids_BL, encoder_BSD = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, positions, width)
    self_BHPK, cross_BHSK = (torch.zeros(2, heads, length, width // heads) for length in (5, positions))
    layer_cache = (self_BHPK, self_BHPK, cross_BHSK, cross_BHSK)
    cache = [tensor.clone() for _ in range(config.decoder_layers) for tensor in layer_cache]
    shapes = [[-1, heads, -1, width // heads]] * 2 + [[-1, heads, positions, width // heads]] * 2
    first = _convert(DecoderFirstGraph(model), (ids_BL, encoder_BSD), [[-1, -1], [-1, positions, width]])
    step = _convert(DecoderWithPastGraph(model), (ids_BL, *cache), [[-1, -1], *(shapes * config.decoder_layers)])
    for node in first.get_ops():  # the projections move into `step`, whose nodes have the same names
        node.set_friendly_name(f"cross/{node.get_friendly_name()}")

    beam_idx = ops.parameter([-1], openvino.Type.i32)
    batch = ops.gather(ops.shape_of(step.input(0), "i64"), ops.constant([0]), ops.constant(0))
    shape = ops.concat([batch, ops.constant([heads, 0, width // heads])], 0)
    empty = ops.broadcast(ops.constant(0.0, openvino.Type.f32), shape)
    _read_current_input(first.input(1))
    states = []
    for index, past in enumerate(step.inputs[1:]):
        layer, part = divmod(index, 4)
        name = f"past_key_values.{layer}.{('decoder', 'encoder')[part // 2]}.{('key', 'value')[part % 2]}"
        initial = empty if part < 2 else _result_source(first.output(1 + index))
        state = ops.read_value(initial, name, openvino.Type.f32, openvino.PartialShape(shapes[part]))
        reordered = ops.gather(state, beam_idx, ops.constant(0)) if part < 2 else state
        updated = _result_source(step.output(1 + 2 * layer + part)) if part < 2 else state
        for consumer in past.get_target_inputs():
            consumer.replace_source_output(reordered.output(0))
        states.append(ops.assign(updated, name))
    inputs = {"input_ids": step.input(0), "encoder_hidden_states": first.input(1), "beam_idx": beam_idx.output(0)}
    parameters = [_set_name(value, name).get_node() for name, value in inputs.items()]
    decoder = openvino.Model([_set_name(step.output(0), "logits").get_node()], states, parameters, "decoder")
    # By default the CPU plugin stores keys and values in 8 bits. That takes the PSNR of alnum's logits from 140.8 to
    # 62.1 dB and a step from 0.42 to 0.54 ms, and saves little in a cache of at most 448 positions.
    decoder.set_rt_info("f32", ["runtime_options", "KV_CACHE_PRECISION"])
    return decoder


def tokenizer_models(source: Path) -> "dict[str, openvino.Model]":
    """Convert the tokenizer of the checkpoint `source` to two models: `tokenizer` and `detokenizer`."""
    from openvino_tokenizers import convert_tokenizer

    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    return {"tokenizer": tokenizer, "detokenizer": detokenizer}


def _convert(graph: nn.Module, inputs: tuple[Tensor, ...], shapes: list[list[int]]) -> "openvino.Model":
    import openvino

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that it treats as constants, which they are
        return openvino.convert_model(
            graph.eval(), example_input=inputs, input=[openvino.PartialShape(shape) for shape in shapes]
        )


def _read_current_input(encoder_states: Any) -> None:
    """Insert an operator that changes no value between the input `encoder_states` and its consumers.

    When the CPU plugin of OpenVINO 2026.4 computes in bfloat16, a subgraph that initialises a state keeps reading the
    memory of the first clip's input. Later clips that are passed without a copy, in other arrays, were then decoded
    with the keys and values of the first clip. An elementwise operator accepts float32 as it is and reads the current
    input; a clamp with limits this wide changes nothing.
    """
    from openvino import opset13 as ops

    consumers = encoder_states.get_target_inputs()
    clamped = ops.clamp(encoder_states, -1e30, 1e30)
    for consumer in consumers:
        consumer.replace_source_output(clamped.output(0))


def _set_name(value: Any, name: str) -> Any:
    value.set_names({name})
    value.get_node().set_friendly_name(name)
    return value


def _result_source(result: Any) -> Any:
    """Return the node, with a single output, that computes the model output `result`."""
    return result.get_node().input_value(0).get_node()
