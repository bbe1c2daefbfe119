"""Models with random weights and a real vocabulary, whose size and latency are those of a trained model."""

import json
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from distill.models.saving import save_model
from recipes.core.errors import UserError
from recipes.core.whisper_shape import POSITIONS_PER_SECOND, WhisperShape


def random_model(shape: WhisperShape, vocabulary: Path, output: Path, seed: int = 0) -> None:
    """Write a model folder of the given shape with random weights.

    Vocabulary size, mel bins and window are those of the model folder `vocabulary`, not those of `shape`. Raises
    UserError if that folder lacks the tokenizer, the feature extractor or the generation config.
    """
    try:
        generation = json.loads((vocabulary / "generation_config.json").read_text())
        features = json.loads((vocabulary / "preprocessor_config.json").read_text())
        tokens = json.loads((vocabulary / "tokenizer.json").read_text())
    except OSError as error:
        raise UserError(
            f"{vocabulary}: expected a tokenizer and feature extractor in Whisper format, found {error}"
        ) from error
    size = 1 + max([token["id"] for token in tokens["added_tokens"]] + list(tokens["model"]["vocab"].values()))
    config = WhisperConfig(
        d_model=shape.width, encoder_layers=shape.encoder_layers, decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads, decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.ffn_widths[0], decoder_ffn_dim=shape.ffn_widths[1], vocab_size=size,
        num_mel_bins=features["feature_size"], max_source_positions=features["chunk_length"] * POSITIONS_PER_SECOND,
        max_target_positions=shape.target_positions,
        bos_token_id=generation["bos_token_id"], eos_token_id=generation["eos_token_id"],
        pad_token_id=generation["pad_token_id"], decoder_start_token_id=generation["decoder_start_token_id"],
    )  # fmt: skip
    torch.manual_seed(seed)
    save_model(WhisperForConditionalGeneration(config).eval(), output, processors=vocabulary)
