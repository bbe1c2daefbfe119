"""Decide whether an artefact is close enough to PyTorch: one row of parity.json for each."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from distill.exporters.export_source import ExportSource
from distill.exporters.layer_divergence import LayerDivergence, first_diverging_layer
from distill.exporters.parity import ParityFigures, TorchReference, compare_with_torch
from eval.runtimes.registry import open_runtime, weight_files
from recipes.schema.export_section import ParityTolerance, Precision


@dataclass(frozen=True)
class ParityLimits:
    """The tolerance that applies to one precision."""

    psnr_db: float
    """Minimum PSNR of encoder states and logits, dB."""
    equal_text: float
    """Minimum fraction of clips with the same greedy text."""
    wer_increase: float
    """Maximum WER above PyTorch's, percentage points."""

    @classmethod
    def of_precision(cls, tolerance: ParityTolerance, precision: Precision) -> Self:
        """Return the limits of a precision."""
        return cls(
            tolerance.min_psnr_db[precision], tolerance.min_equal_text[precision], tolerance.max_wer_increase[precision]
        )

    def allow(self, figures: ParityFigures) -> bool:
        """Return whether all figures are within the limits."""
        return (
            figures.min_psnr_db >= self.psnr_db
            and figures.equal_text >= self.equal_text
            and (figures.wer_increase is None or figures.wer_increase.value <= self.wer_increase)
        )


@dataclass(frozen=True)
class ParityRow:
    """One artefact's comparison with PyTorch, a row of parity.json."""

    name: str
    runtime: str
    precision: Precision
    size_mb: float
    """Size of the weight files, MB."""
    figures: ParityFigures
    limits: ParityLimits
    divergence: LayerDivergence | None = None
    """Where an artefact that is beyond its limits first diverges; None if its PSNR is within them."""

    @property
    def kept(self) -> bool:
        """Whether the artefact is within its limits."""
        return self.limits.allow(self.figures)

    def to_json(self) -> dict[str, Any]:
        """Return the row as parity.json, the report and the model card have it."""
        row = {
            "name": self.name, "runtime": self.runtime, "precision": self.precision, "size_mb": self.size_mb,
            **asdict(self.figures), "tolerance": asdict(self.limits), "kept": self.kept,
        }  # fmt: skip
        if not self.kept:
            row["first_departure"] = self.divergence.describe() if self.divergence else None
        return row

    def describe(self) -> str:
        """Return in words how far the artefact is from PyTorch, and where it first diverges."""
        figures, limits = self.figures, self.limits
        parts = [
            f"encoder {figures.encoder.psnr_db:.1f} dB and logits {figures.logits.psnr_db:.1f} dB (at least "
            f"{limits.psnr_db:g})",
            f"equal text {figures.equal_text:.2f} (at least {limits.equal_text:g})",
        ]
        if wer := figures.wer_increase:
            interval = f"{wer.low:.1f} to {wer.high:.1f}"
            parts.append(f"WER {wer.value:+.1f} points ({interval}; at most {limits.wer_increase:+g})")
        text = f"{self.name} differs from torch: " + ", ".join(parts)
        return f"{text}; {self.divergence.describe()}" if self.divergence else text


def check_artefact(
    artefact: tuple[str, str, Precision],
    student: ExportSource,
    folder: Path,
    reference: TorchReference,
    tolerance: ParityTolerance,
) -> ParityRow:
    """Compare one artefact in a model folder with PyTorch; beyond the tolerance, find where it first diverges.

    Args:
        artefact: Name, runtime and precision.
        student: What the artefact was exported from.
        folder: The model folder that it was exported into.
        reference: PyTorch's results on the clips.
        tolerance: The recipe's tolerances for all precisions.
    """
    name, runtime, precision = artefact
    figures = compare_with_torch(reference, open_runtime(runtime, folder, precision, threads=2), name)
    limits = ParityLimits.of_precision(tolerance, precision)
    size_mb = sum(file.stat().st_size for file in weight_files(runtime, folder, precision)) / 1e6
    divergence = None
    if not limits.allow(figures):
        divergence = first_diverging_layer(student, runtime, precision, reference, figures, limits.psnr_db)
    return ParityRow(name, runtime, precision, size_mb, figures, limits, divergence)
