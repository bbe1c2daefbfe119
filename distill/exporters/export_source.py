"""The input of every exporter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.schema.export_section import SMOOTH_QUANT_ALPHAS

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


@dataclass(frozen=True)
class ExportSource:
    """A model in memory, its checkpoint, and audio for the quantizers that calibrate on activations."""

    model: "WhisperForConditionalGeneration"
    """On the CPU in float32, in evaluation mode."""
    source: Path
    """Folder of the model's checkpoint."""
    calibration: Sequence[Sequence[str]]
    """For each training utterance, references to its audio (`eval.audio`). Never test audio."""
    smooth_quant: Sequence[float | None] = SMOOTH_QUANT_ALPHAS
    """Values of SmoothQuant's alpha that such a quantizer tries; None means without SmoothQuant."""
    language: str | None = "en"
    """Language code of the text that a quantizer lets the model write on the calibration audio."""
    task: str = "transcribe"
    """Task of that text."""
