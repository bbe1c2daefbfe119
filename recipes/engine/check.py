"""`sottovoce check`: paths resolved, and parameters, memory and disk estimated before anything runs."""

import json
from dataclasses import replace
from pathlib import Path

from recipes.core.errors import UserError
from recipes.core.model_folder import local_model_folder
from recipes.core.whisper_shape import HUB_SHAPES, POSITIONS_PER_SECOND, WhisperShape
from recipes.engine.flow import active_stages
from recipes.schema.compress_section import CompressSection, require_at_most
from recipes.schema.device_budget import load_budgets
from recipes.schema.recipe import Recipe
from recipes.schema.train_section import TrainSection

_TOKENS_PER_HOUR = 4 * 3600
"""English read aloud in Whisper's vocabulary, end of text included."""


def check_recipe(recipe: Recipe) -> list[str]:
    """Lines of text about a recipe; UserError names the first key whose file or folder is not there."""
    _paths(recipe)
    lines = [
        f"recipe {recipe.name}: {' -> '.join(spec.name for spec in active_stages(recipe))}",
        f"folder {recipe.root}",
    ]
    shape = model_shape(recipe.teacher.model, "teacher.model")
    if shape is None:
        return [*lines, f"teacher {recipe.teacher.model}: of unknown shape until it is fetched; no estimates"]
    source, key = recipe.student.source(recipe.teacher.model)
    whole = model_shape(source, key) or shape
    for key in ("encoder_layers", "decoder_layers"):
        kept, depth = getattr(recipe.student, key), getattr(whole, key)
        if kept is not None and kept > depth:
            raise UserError(f"student.{key}: expected 1 to {depth}, the depth of {source}, found {kept}")
    student = exported = whole.cut(recipe.student.encoder_layers, recipe.student.decoder_layers)
    lines += [_model_line("teacher", shape), _model_line("student", student)]
    bound = "at least"
    if recipe.compress is not None:
        exported = compressed_shape(student, recipe.compress)
        found = [name for name, _ in recipe.compress.methods if name in ("vocabulary", "low_rank")]
        bound = f"before {' and '.join(found)}" if found else bound
        lines.append(_model_line("smaller", exported) + (f", {bound}" if found else ""))
    if recipe.labels is not None and recipe.labels.source is None and recipe.labels.top_k:
        kept = 8 * recipe.labels.top_k * _TOKENS_PER_HOUR * (2 if recipe.labels.timestamps else 1)
        lines.append(f"disk    labels with {recipe.labels.top_k} logits a token {kept / 1e6:.0f} MB an hour of speech")
    for section, trained in ((recipe.train, student), (recipe.heal, exported)):
        lines += _training_lines(section, shape, trained) if section is not None else []
    bytes_each = {"fp32": 4, "fp16": 2, "int8": 1, "w8a8": 1, "w4a16": 0.5}
    sizes_mb = {
        name: exported.parameters * bytes_each[precision] / 1e6 for name, _, precision in recipe.export.artefacts
    }
    sizes = ", ".join(f"{name} {size:.{1 if size < 10 else 0}f} MB" for name, size in sizes_mb.items())
    return [*lines, f"export  {bound}: {sizes}" if sizes else "export  nothing"]


def compressed_shape(student: WhisperShape, section: CompressSection) -> WhisperShape:
    """What a compress section leaves of a student before tokens and ranks leave, which labels and audio decide."""
    changes = {"encoder_ffn": student.neurons[0]}  # whatever becomes of the decoder's
    if section.window is not None:
        there = student.source_positions // POSITIONS_PER_SECOND
        changes["source_positions"] = POSITIONS_PER_SECOND * require_at_most(
            "window.seconds", section.window.seconds, there
        )
    if section.prune is not None:
        for key, field, there in (
            ("encoder_layers", "encoder_layers", student.encoder_layers),
            ("heads", "encoder_heads", student.encoder_heads or student.heads),
            ("ffn_width", "encoder_ffn", student.neurons[0]),
            ("decoder_ffn_width", "ffn", student.neurons[1]),
        ):
            if (kept := getattr(section.prune, key)) is not None:
                changes[field] = require_at_most(f"prune.{key}", kept, there)
    return replace(student, **changes)


def _training_lines(section: TrainSection, shape: WhisperShape, student: WhisperShape) -> list[str]:
    """Memory and disk."""
    trained = student.decoder_parameters + (0 if section.freeze_encoder else student.encoder_parameters)
    # float32 weights of both, and for what is trained a gradient and AdamW's two moments.
    held = student.parameters + (shape.decoder_parameters if section.kl_weight > 0 else 0)
    if section.kl_weight > 0 and not section.freeze_encoder:
        held += shape.encoder_parameters
    # On disk in float32: the newest checkpoint with its two moments, and the best student.
    lines = [
        f"{section.name:<7} {trained / 1e6:.1f} M trained; weights, gradients and AdamW "
        f"{(4 * held + 12 * trained) / 1e9:.2f} GB, activations beside",
        f"disk    checkpoint and student {(8 * student.parameters + 8 * trained) / 1e9:.2f} GB",
    ]
    if section.cache_encoder:
        each_mb = 2e-6 * shape.source_positions * shape.width
        lines.append(f"disk    encoder cache {each_mb:.2f} MB an utterance while training")
    return lines


def _model_line(role: str, shape: WhisperShape) -> str:
    return (
        f"{role} {shape.parameters / 1e6:.1f} M parameters: encoder {shape.encoder_parameters / 1e6:.1f} M in "
        f"{shape.encoder_layers} layers, decoder {shape.decoder_parameters / 1e6:.1f} M in {shape.decoder_layers}"
    )


def model_shape(model: str, key: str) -> WhisperShape | None:
    """The shape of a local folder or of a Hub id known to this table; None for another Hub id."""
    if (folder := local_model_folder(model, key)) is None:
        return HUB_SHAPES.get(model)
    try:
        return WhisperShape.from_config(json.loads((folder / "config.json").read_text()))
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: expected a Whisper configuration, found {error!r}") from error


def _paths(recipe: Recipe) -> None:
    for number, source in enumerate(recipe.corpus.sources):
        where = f"corpus.sources.{number}"
        _expect(f"{where}.audiofolder", source.audiofolder, folder=True)
        _expect(f"{where}.audio", source.audio, folder=True)
        _expect(f"{where}.synthesis.sentences", source.synthesis.sentences if source.synthesis else None)
    for key in ("noise", "long_form"):
        part = getattr(recipe.eval, key, None)
        _expect(f"eval.{key}.folder", part.folder if part else None, folder=True)
    _expect("budget.device", recipe.budget.device if recipe.budget else None)
    for number, path in enumerate(recipe.budget.also if recipe.budget else []):
        _expect(f"budget.also.{number}", path)
    load_budgets(recipe)
    _expect("launch", recipe.launch)


def _expect(key: str, path: Path | None, *, folder: bool = False) -> None:
    if path is not None and not (path.is_dir() if folder else path.is_file()):
        kind = "folder" if folder else "file"
        raise UserError(f"{key}: expected a {kind} at {path} ({path.absolute()}), found none; correct the path")
