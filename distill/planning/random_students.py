"""A student of random weights as files for devices: all that it costs, and nothing that it knows."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_letters, digits, punctuation

from distill.compression.context import CompressionContext
from distill.compression.vocabulary_trimming import trim_vocabulary
from distill.compression.window_shortening import shorten_window
from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import write_artefacts
from distill.exporters.folder_layout import write_layout
from distill.models.random_weights import random_model
from distill.models.saving import copy_processors, save_model
from distill.planning.search_space import Candidate, PlannedTeacher
from eval.runtimes.torch_runtime import load_model
from recipes.schema.compress_section import VocabularyOptions, WindowOptions
from recipes.schema.export_section import ExportSection

Artefact = tuple[str, str]
"""Runtime and precision."""


def build_artefacts(
    teacher: PlannedTeacher, candidate: Candidate, artefacts: Sequence[Artefact], clip: Path, scratch: Path,
    language: str | None,
) -> tuple[Path, int]:  # fmt: skip
    """A model folder with the artefacts, below `scratch`, and the size of its vocabulary.

    Quantisers that look at activations see the `clip`. Raises UserError where an exporter's package is not installed.
    """
    checkpoint, folder = scratch / "student", scratch / "export"
    build_checkpoint(teacher, candidate, checkpoint, scratch)
    write_layout(checkpoint, folder)
    section: dict[str, list[str]] = {"onnx": []}
    for runtime, precision in artefacts:
        section.setdefault(runtime, []).append(precision)
    student = ExportSource(load_model(checkpoint), checkpoint, [[str(clip)]], [None], language)
    write_artefacts(student, folder, ExportSection.model_validate(section))
    return folder, student.model.config.vocab_size


def build_checkpoint(teacher: PlannedTeacher, candidate: Candidate, folder: Path, scratch: Path) -> None:
    """The student's checkpoint, window and tokens cut as the stage `compress` cuts them."""
    whole, processors = scratch / "whole", scratch / "processors"
    random_model(teacher.shape.cut(candidate.encoder_layers, candidate.decoder_layers), teacher.processors, whole)
    processors.mkdir()
    copy_processors(teacher.processors, processors)
    # The labels are not known yet: the commonest tokens in these characters stand for theirs.
    material = CompressionContext([], [f"{ascii_letters} {digits} {punctuation}"], 0, processors)
    model = load_model(whole)
    if candidate.seconds < teacher.seconds:
        model, _ = shorten_window(model, WindowOptions(seconds=candidate.seconds), material)
    if candidate.tokens is not None:
        model, _ = trim_vocabulary(model, VocabularyOptions(tokens=candidate.tokens), material)
    # A real teacher's alignment heads may lie in layers that are not there.
    save_model(model, folder, processors=processors, decoder_layers=list(range(candidate.decoder_layers)))
