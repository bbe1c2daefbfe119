"""Students with random weights, exported for devices: they cost what a trained student of the same shape costs."""

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
"""Runtime and precision, such as `("onnx", "int8")`."""


def build_artefacts(
    teacher: PlannedTeacher, candidate: Candidate, artefacts: Sequence[Artefact], clip: Path, scratch: Path,
    language: str | None,
) -> tuple[Path, int]:  # fmt: skip
    """Build a candidate and export it in each artefact.

    `clip` is the calibration data of quantisers that look at activations. Everything is written below `scratch`.

    Returns:
        The model folder with the artefacts, and the size of the student's vocabulary.

    Raises:
        UserError: The package of an exporter is not installed.
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
    """Write a candidate's checkpoint to `folder`, with the window and vocabulary cut as the stage `compress` does."""
    uncut, processors = scratch / "whole", scratch / "processors"
    random_model(teacher.shape.cut(candidate.encoder_layers, candidate.decoder_layers), teacher.processors, uncut)
    processors.mkdir()
    copy_processors(teacher.processors, processors)
    # There are no labels yet whose tokens could be kept, so the most frequent tokens of these characters are kept.
    context = CompressionContext([], [f"{ascii_letters} {digits} {punctuation}"], 0, processors)
    model = load_model(uncut)
    if candidate.seconds < teacher.seconds:
        model, _ = shorten_window(model, WindowOptions(seconds=candidate.seconds), context)
    if candidate.tokens is not None:
        model, _ = trim_vocabulary(model, VocabularyOptions(tokens=candidate.tokens), context)
    # The alignment heads of a real teacher may be in layers that this student does not have.
    save_model(model, folder, processors=processors, drop_alignment_heads=True)
