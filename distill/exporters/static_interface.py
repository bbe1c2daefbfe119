"""Inputs and outputs of the static graphs: example inputs for the converters, and manifest.json for host programs.

F mel bins, T mel frames, S encoder positions, D model width, H heads, K width of a head, N cache length, V vocabulary.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distill.exporters.static_graphs import MAX_CACHE, StaticDecoder, StaticEncoder
from recipes.core.atomic_files import write_json

MASKED_SCORE = -100.0
"""Added to the scores of empty cache positions: Qualcomm's value, which fits 16-bit accelerators as well."""

TENSOR_MEANINGS = {
    "input_features": "log-mel spectrogram of one window [1, mel bins, frames], see audio",
    "encoder_states": "encoder output [1, positions, width]; the decoder does not need it",
    "cross_key": "cross-attention keys of a decoder layer [heads, 1, head width, positions], constant for a window",
    "cross_value": "cross-attention values of a decoder layer [heads, 1, positions, head width], constant for a window",
    "input_ids": "the one token of this step",
    "position": "how many tokens came before this one: 0 for the first of the prompt",
    "attention_mask": "added to the self-attention scores, see cache",
    "self_key": "keys of the tokens before this one [heads, 1, head width, cache length - 1], newest last",
    "self_value": "values of the tokens before this one [heads, 1, cache length - 1, head width], newest last",
    "logits": "score of every vocabulary entry as the next token, before softmax",
    "new_self_key": "self_key of the next step: oldest dropped, this token last",
    "new_self_value": "self_value of the next step: oldest dropped, this token last",
}


def cache_length(model: WhisperForConditionalGeneration) -> int:
    """Return the number of tokens N that the decoder can hold, including the prompt."""
    return min(MAX_CACHE, model.config.max_target_positions)


def encoder_inputs(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """Return the encoder's input by name, filled with zeros."""
    config = model.config
    return {"input_features": torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)}


def decoder_inputs(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """Return the decoder's inputs by name and in order, filled with zeros."""
    config, length = model.config, cache_length(model)
    heads, positions = config.decoder_attention_heads, config.max_source_positions
    width = config.d_model // heads
    inputs = {
        "input_ids": torch.zeros(1, 1, dtype=torch.int32),
        "position": torch.zeros(1, dtype=torch.int32),
        "attention_mask": torch.zeros(1, 1, 1, length),
    }
    for layer in range(config.decoder_layers):
        inputs |= {
            f"self_key_{layer}": torch.zeros(heads, 1, width, length - 1),
            f"self_value_{layer}": torch.zeros(heads, 1, length - 1, width),
            f"cross_key_{layer}": torch.zeros(heads, 1, width, positions),
            f"cross_value_{layer}": torch.zeros(heads, 1, positions, width),
        }
    return inputs


def write_manifest(path: Path, model: WhisperForConditionalGeneration, files: dict[str, dict[str, str]]) -> None:
    """Write what a host program without this project's code needs to run the files.

    `files` maps each variant (a precision or a runtime) to the names of its encoder and decoder file.
    """
    config, length = model.config, cache_length(model)
    with torch.no_grad():
        graphs = {}
        for name, graph, inputs in (
            ("encoder", StaticEncoder(model), encoder_inputs(model)),
            ("decoder", StaticDecoder(model), decoder_inputs(model)),
        ):
            outputs = graph(**inputs)
            graphs[name] = {"inputs": _describe(inputs), "outputs": _describe(outputs)}
    samples = 2 * config.max_source_positions * 160
    write_json(
        path,
        {
            "files": files,
            **graphs,
            "audio": {
                "sampling_rate": 16_000,
                "window_samples": samples,
                "window_seconds": samples / 16_000,
                "channels": 1,
                "mel_bins": config.num_mel_bins,
                "frames": 2 * config.max_source_positions,
                "n_fft": 400,
                "hop_samples": 160,
                "window": "hann, periodic",
                "padding": "zeros to the window, then 200 samples reflected at both ends; the last frame is dropped",
                "mel_scale": "slaney, area-normalised, 0 to 8000 Hz, of the power spectrum",
                "scaling": "x = log10(max(mel, 1e-10)); x = max(x, max of x - 8); x = (x + 4) / 4",
            },
            "cache": {
                "length": length,
                "start": "self_key and self_value are zeros, the mask is all `masked`",
                "masked": MASKED_SCORE,
                "mask": "before the step at position p, set the last p + 1 of the mask's entries to 0",
                "step": "feed new_self_key_i as self_key_i, new_self_value_i as self_value_i, and count position up",
                "end": f"stop at the end token, or before position reaches {length}",
            },
            "tokens": _tokens(model),
        },
    )


def _describe(tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "meaning": TENSOR_MEANINGS[re.sub(r"_\d+$", "", name)],
        }
        for name, tensor in tensors.items()
    ]


def _tokens(model: WhisperForConditionalGeneration) -> dict[str, Any]:
    generation = model.generation_config
    prompt: list[dict[str, Any]] = [{"part": "start", "id": generation.decoder_start_token_id}]
    languages = getattr(generation, "lang_to_id", None)
    if languages and getattr(generation, "is_multilingual", True):
        prompt += [{"part": "language", "one_of": languages}, {"part": "task", "one_of": generation.task_to_id}]
    if (no_timestamps := getattr(generation, "no_timestamps_token_id", None)) is not None:
        prompt.append({"part": "no_timestamps", "id": no_timestamps})
    return {
        "file": "../tokenizer.json",
        "vocabulary": model.config.vocab_size,
        "prompt": prompt,
        "rule": "feed one id of each part of the prompt, in this order, a step each; the first token of the text is "
        "the best of the last step's logits, and each token is fed to find the next",
        "end": generation.eos_token_id,
        "never": generation.suppress_tokens or [],
        "never_first": generation.begin_suppress_tokens or [],
    }
