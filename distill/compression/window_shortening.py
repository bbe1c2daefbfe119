"""A shorter window: the encoder's first positions and no others.

Whisper hears every clip as a whole window, padded with silence, and attends to all of it. A device that is spoken to in
short commands pays for half a minute each time; with a window of 10 s the encoder has a third of the positions, and
the decoder's cross-attention a third of the keys. Positions are fixed sinusoids, so the first ones mean what they did;
that the rest of the window is missing is what healing has to mend.
"""

import copy
from typing import Any

from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext
from distill.models.cutting import with_weights
from eval.audio.recordings import SAMPLE_RATE
from eval.runtimes.model_format import JsonSettings
from recipes.core.atomic_files import write_json
from recipes.core.whisper_shape import POSITIONS_PER_SECOND
from recipes.schema.compress_section import WindowOptions, require_at_most


def shorten_window(
    model: WhisperForConditionalGeneration, section: WindowOptions, material: CompressionContext
) -> tuple[WhisperForConditionalGeneration, dict[str, Any]]:
    """A copy of the model that takes in `seconds` at a time; its feature extractor is told."""
    config, positions = copy.deepcopy(model.config), section.seconds * POSITIONS_PER_SECOND
    require_at_most("window.seconds", section.seconds, config.max_source_positions // POSITIONS_PER_SECOND)
    weights, name = model.state_dict(), "model.encoder.embed_positions.weight"
    weights[name] = weights[name][:positions]
    config.max_source_positions = positions
    sizes = {
        "chunk_length": section.seconds, "n_samples": section.seconds * SAMPLE_RATE, "nb_max_frames": 2 * positions,
    }  # fmt: skip
    for file, key in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        if (path := material.processors / file).is_file():
            values = JsonSettings.read(path)
            (values if key is None else values.get(key, {})).update(sizes)
            write_json(path, values)
    return with_weights(model, type(model)(config), weights), {
        "of": model.config.max_source_positions,
        "positions": positions,
    }
