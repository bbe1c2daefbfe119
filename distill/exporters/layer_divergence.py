"""Which layer of an artefact is the first to depart from torch.

A runtime gives the encoder's last states and the logits, nothing in between. So the student is cut off after its first
layer, its second and so on, exported as the artefact was and compared with torch cut off in the same place.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.exporters.parity import RunningError, TorchReference, forced_decoding
from distill.models.cutting import cut_layers
from distill.models.saving import save_model
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.schema.export_section import Precision

CLIPS = 4


@dataclass(frozen=True)
class LayerDivergence:
    """The first layer after which the PSNR is below the limit."""

    part: str
    """encoder or decoder."""
    layer: int
    """Counted from one."""
    psnr_db: list[float]
    """After each layer up to it."""

    def __str__(self) -> str:
        course = ", ".join(f"{value:.1f}" for value in self.psnr_db)
        return f"{self.part} layer {self.layer} is the first to depart ({course} dB after each layer)"


def first_diverging_layer(
    student: ExportSource,
    runtime: str,
    precision: Precision,
    reference: TorchReference,
    row: dict[str, Any],
    limit_db: float,
) -> LayerDivergence | None:
    """The layer behind a row of `parity.compare` with encoder states or logits below `limit_db`; None without such."""
    part = next((part for part in ("encoder", "logits") if row[part]["psnr_db"] < limit_db), None)
    if part is None:
        return None
    config = student.model.config
    encoder, decoder = list(range(config.encoder_layers)), list(range(config.decoder_layers))
    depths = encoder if part == "encoder" else decoder
    course: list[float] = []
    for last in tqdm(depths, f"departure {runtime}-{precision}", unit="layer"):
        kept = (encoder[: last + 1], decoder[:1]) if part == "encoder" else (encoder, decoder[: last + 1])
        course.append(_psnr_db(student, kept, runtime, precision, reference, part))
        if course[-1] < limit_db:
            break
    return LayerDivergence("encoder" if part == "encoder" else "decoder", len(course), course)


def _psnr_db(
    student: ExportSource,
    kept: tuple[list[int], list[int]],
    runtime: str,
    precision: Precision,
    reference: TorchReference,
    part: str,
) -> float:
    """Of encoder states or logits, the student cut to these layers, beside torch cut in the same way."""
    model, difference = cut_layers(student.model, *kept), RunningError()
    prompt = reference.transcriber.format.prompt
    with tempfile.TemporaryDirectory() as place:
        source, folder = Path(place) / "checkpoint", Path(place) / "export"
        save_model(model, source, processors=student.source, decoder_layers=kept[1])
        write_layout(source, folder)
        EXPORTERS[runtime](replace(student, model=model, source=source), folder, [precision])
        torch_side, other = TorchRuntime(model), open_runtime(runtime, folder, precision, threads=2)
        for clip in reference.clips[:CLIPS]:
            states, found = (forced_decoding(side, clip.mel_BFT, prompt, clip.tokens) for side in (torch_side, other))
            pairs = [(states[0], found[0])] if part == "encoder" else zip(states[1], found[1], strict=True)
            for expected, departed in pairs:
                difference.add(expected, departed)
    return difference.figures()["psnr_db"]
