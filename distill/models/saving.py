"""TODO: distill.models.saving."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration

from recipes.core.atomic_files import write_json
from recipes.core.model_folder import PROCESSOR_FILES


def save_model(
    model: WhisperForConditionalGeneration,
    folder: Path,
    *,
    processors: Path,
    decoder_layers: list[int] | None = None,
) -> None:
    """Weights in float32 safetensors, config, and the processors' files of another model folder as they are.

    With `decoder_layers`, those left of another decoder, its alignment heads are dropped: what they listened to there
    says nothing of them here, where they are trained on without its other layers (`distill.alignment_heads`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    copy_processors(processors, folder)
    if decoder_layers is not None:
        generation: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
        generation.pop("alignment_heads", None)
        write_json(folder / "generation_config.json", generation)


def copy_processors(source: Path, folder: Path) -> None:
    """Tokenizer, feature extractor and generation config of a model folder, as they are."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
