"""TODO: distill.exporters.export_source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.schema.export_section import SMOOTH_QUANT_ALPHAS

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


@dataclass(frozen=True)
class ExportSource:
    """What is exported."""

    model: "WhisperForConditionalGeneration"
    """On the CPU in float32, in evaluation mode."""
    source: Path
    """Its checkpoint's folder."""
    calibration: Sequence[Sequence[str]]
    """Training audio (`eval.audio` references an utterance), for quantisers that look at activations; never test."""
    smooth_quant: Sequence[float | None] = SMOOTH_QUANT_ALPHAS
    """Shares of SmoothQuant that such a quantiser tries; None leaves it out."""
    language: str | None = "en"
    task: str = "transcribe"
    """Language code and task of the text that a quantiser lets it write on that audio."""
