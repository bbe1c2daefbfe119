"""Shorten the window: keep the encoder's first positions and drop the others.

Whisper processes every clip as a whole window of 30 s, padded with silence, and attends to all of it. A device that is
spoken to in short commands pays for the full window each time. With a window of 10 s the encoder has a third of the
positions, and the decoder's cross-attention a third of the keys. The position embeddings are fixed sinusoids, so the
first ones keep their meaning; healing has to make up for the missing rest of the window.
"""

import copy
from typing import TypedDict

from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext
from distill.models.cutting import with_weights
from eval.audio.recordings import SAMPLE_RATE
from eval.runtimes.model_format import JsonSettings
from recipes.core.atomic_files import write_json
from recipes.core.whisper_shape import POSITIONS_PER_SECOND
from recipes.schema.compress_section import WindowOptions, require_at_most


class WindowReport(TypedDict):
    """What compression.json holds of the window, in encoder positions."""

    of: int
    """Before."""
    positions: int
    """After."""


def shorten_window(
    model: WhisperForConditionalGeneration, options: WindowOptions, context: CompressionContext
) -> tuple[WhisperForConditionalGeneration, WindowReport]:
    """Return a copy of the model whose window is `options.seconds` long; its feature extractor's files are rewritten.

    Raises UserError if the model's window is shorter than that.
    """
    config, positions = copy.deepcopy(model.config), options.seconds * POSITIONS_PER_SECOND
    require_at_most("window.seconds", options.seconds, config.max_source_positions // POSITIONS_PER_SECOND)
    weights, name = model.state_dict(), "model.encoder.embed_positions.weight"
    weights[name] = weights[name][:positions]
    config.max_source_positions = positions
    sizes = {
        "chunk_length": options.seconds, "n_samples": options.seconds * SAMPLE_RATE, "nb_max_frames": 2 * positions,
    }  # fmt: skip
    for file, key in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        if (path := context.processors / file).is_file():
            settings = JsonSettings.read(path)
            (settings if key is None else settings.get(key, {})).update(sizes)
            write_json(path, settings)
    shorter = with_weights(model, type(model)(config), weights)
    return shorter, {"of": model.config.max_source_positions, "positions": positions}
