"""Saving models as folders in Whisper format: weights, config, tokenizer, feature extractor and generation config."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration

from recipes.core.atomic_files import write_json
from recipes.core.model_folder import PROCESSOR_FILES


def save_model(
    model: WhisperForConditionalGeneration, folder: Path, *, processors: Path, drop_alignment_heads: bool = False
) -> None:
    """Write the model's config and its weights as float32 safetensors, and copy the processor files from `processors`.

    Args:
        model: Model to save.
        folder: Folder to write to; created if missing.
        processors: Model folder whose tokenizer, feature extractor and generation config are copied unchanged.
        drop_alignment_heads: Leave the alignment heads out of the generation config, for a decoder that was cut or has
            new weights. The heads were selected for the decoder of `processors` and may attend to something else here.
            `distill.alignment_heads` selects new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    copy_processors(processors, folder)
    if drop_alignment_heads:
        generation: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
        generation.pop("alignment_heads", None)
        write_json(folder / "generation_config.json", generation)


def copy_processors(source: Path, folder: Path) -> None:
    """Copy tokenizer, feature extractor and generation config of the model folder `source` unchanged."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
