"""Find the first layer at which an artefact diverges from PyTorch.

A runtime returns the encoder's last states and the logits, but nothing in between. So the student is cut off after its
first layer, its second and so on, each time exported like the artefact and compared with PyTorch cut off at the same
layer.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.exporters.parity import ParityFigures, RunningError, TorchReference, forced_decoding
from distill.models.cutting import cut_layers
from distill.models.saving import save_model
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.progress import track
from recipes.schema.export_section import Precision

CLIPS = 4
"""Number of clips that the cut models are compared on."""

Part = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class LayerDivergence:
    """The first layer after which the PSNR is below the limit."""

    part: Part
    layer: int
    """Counted from one."""
    psnr_db: list[float]
    """After each layer up to this one."""

    def describe(self) -> str:
        """Return the divergence in words."""
        course = ", ".join(f"{value:.1f}" for value in self.psnr_db)
        return f"{self.part} layer {self.layer} is the first to diverge (PSNR after each layer: {course} dB)"


def first_diverging_layer(
    student: ExportSource,
    runtime: str,
    precision: Precision,
    reference: TorchReference,
    figures: ParityFigures,
    min_psnr_db: float,
) -> LayerDivergence | None:
    """Return the first layer after which an artefact's PSNR is below `min_psnr_db`.

    The encoder is searched if its states are below that limit, else the decoder if the logits are; returns None if
    neither is.

    Args:
        student: What the artefact was exported from.
        runtime: The artefact's runtime.
        precision: The artefact's precision.
        reference: PyTorch's results on the clips.
        figures: The comparison of the whole artefact with PyTorch.
        min_psnr_db: The limit, dB.
    """
    part: Part
    if figures.encoder.psnr_db < min_psnr_db:
        part = "encoder"
    elif figures.logits.psnr_db < min_psnr_db:
        part = "decoder"
    else:
        return None
    config = student.model.config
    encoder, decoder = list(range(config.encoder_layers)), list(range(config.decoder_layers))
    psnr_db: list[float] = []
    for last in track(encoder if part == "encoder" else decoder, f"divergence {runtime}-{precision}", unit="layer"):
        layers = (encoder[: last + 1], decoder[:1]) if part == "encoder" else (encoder, decoder[: last + 1])
        psnr_db.append(_psnr_of_cut(student, layers, runtime, precision, reference, part))
        if psnr_db[-1] < min_psnr_db:
            break
    return LayerDivergence(part, len(psnr_db), psnr_db)


def _psnr_of_cut(
    student: ExportSource,
    layers: tuple[list[int], list[int]],
    runtime: str,
    precision: Precision,
    reference: TorchReference,
    part: Part,
) -> float:
    """Cut the student to these encoder and decoder layers, export it, and return its PSNR against PyTorch in dB.

    The PSNR is that of the encoder states or, for the decoder, of the logits.
    """
    model, error = cut_layers(student.model, *layers), RunningError()
    prompt = reference.transcriber.format.prompt
    with tempfile.TemporaryDirectory() as scratch:
        source, folder = Path(scratch) / "checkpoint", Path(scratch) / "export"
        save_model(model, source, processors=student.source, drop_alignment_heads=True)
        write_layout(source, folder)
        EXPORTERS[runtime](replace(student, model=model, source=source), folder, [precision])
        torch_runtime, exported = TorchRuntime(model), open_runtime(runtime, folder, precision, threads=2)
        for clip in reference.clips[:CLIPS]:
            expected_BSD, expected_logits = forced_decoding(torch_runtime, clip.mel_BFT, prompt, clip.tokens)
            computed_BSD, computed_logits = forced_decoding(exported, clip.mel_BFT, prompt, clip.tokens)
            if part == "encoder":
                error.add(expected_BSD, computed_BSD)
                continue
            for expected_BV, computed_BV in zip(expected_logits, computed_logits, strict=True):
                error.add(expected_BV, computed_BV)
    return error.result().psnr_db
