"""`sottovoce check`: check the paths and shapes of a recipe and estimate parameters, memory and disk space."""

import json
from dataclasses import replace
from pathlib import Path

from recipes.core.errors import UserError
from recipes.core.model_folder import local_model_folder
from recipes.core.whisper_shape import HUB_SHAPES, POSITIONS_PER_SECOND, WhisperShape
from recipes.engine.flow import active_stages
from recipes.schema.compress_section import CompressSection, require_at_most
from recipes.schema.device_budget import load_budgets
from recipes.schema.export_section import ExportSection
from recipes.schema.labels_section import LabelsSection
from recipes.schema.recipe import Recipe
from recipes.schema.train_section import TrainSection

_TOKENS_PER_HOUR = 4 * 3600
"""Tokens of an hour of English read aloud, in Whisper's vocabulary and with end-of-text tokens: four per second."""

_BYTES_PER_WEIGHT = {"fp32": 4, "fp16": 2, "int8": 1, "w8a8": 1, "w4a16": 0.5}
"""Bytes of one weight by the precision of an artefact."""

_UNPREDICTABLE_METHODS = ("vocabulary", "low_rank")
"""Compression methods whose savings depend on labels and audio, so that they cannot be estimated."""


def check_recipe(recipe: Recipe) -> list[str]:
    """Check a recipe before anything runs, and return its estimates as lines of text.

    Raises UserError for the first key whose file or folder does not exist, or whose value does not fit the models.
    """
    _check_paths(recipe)
    lines = [
        f"recipe  {recipe.name}: {' -> '.join(stage.name for stage in active_stages(recipe))}",
        f"folder  {recipe.root}",
    ]
    teacher = model_shape(recipe.teacher.model, "teacher.model")
    if teacher is None:
        return [*lines, f"teacher {recipe.teacher.model}: its shape is unknown until it is downloaded; no estimates"]
    student = exported = _student_shape(recipe, teacher)
    lines += [_model_line("teacher", teacher), _model_line("student", student)]
    bound = "at least"
    if recipe.compress is not None:
        exported = compressed_shape(student, recipe.compress)
        methods = [name for name, _ in recipe.compress.methods if name in _UNPREDICTABLE_METHODS]
        bound = f"before {' and '.join(methods)}" if methods else bound
        lines.append(_model_line("smaller", exported) + (f", {bound}" if methods else ""))
    lines += _label_lines(recipe.labels)
    for section, trained in ((recipe.train, student), (recipe.heal, exported)):
        lines += _training_lines(section, teacher, trained) if section is not None else []
    return [*lines, _export_line(recipe.export, exported, bound)]


def _student_shape(recipe: Recipe, teacher: WhisperShape) -> WhisperShape:
    """Return the shape of the student before training. Raises UserError if it has more layers than its source."""
    model, key = recipe.student.source(recipe.teacher.model)
    source = model_shape(model, key) or teacher
    for key in ("encoder_layers", "decoder_layers"):
        requested, available = getattr(recipe.student, key), getattr(source, key)
        if requested is not None and requested > available:
            raise UserError(f"student.{key}: expected 1 to {available}, the layers of {model}, found {requested}")
    return source.cut(recipe.student.encoder_layers, recipe.student.decoder_layers)


def compressed_shape(student: WhisperShape, section: CompressSection) -> WhisperShape:
    """Return the shape of a student after window and prune, which is known before anything runs.

    The other methods depend on labels and audio. Raises UserError if the section keeps more than the student has.
    """
    # explicit, because a pruned decoder changes the width that the encoder would otherwise share with it
    changes = {"encoder_ffn": student.ffn_widths[0]}
    if section.window is not None:
        seconds = require_at_most(
            "window.seconds", section.window.seconds, student.source_positions // POSITIONS_PER_SECOND
        )
        changes["source_positions"] = POSITIONS_PER_SECOND * seconds
    if section.prune is not None:
        for key, field, available in (
            ("encoder_layers", "encoder_layers", student.encoder_layers),
            ("heads", "encoder_heads", student.encoder_heads or student.heads),
            ("ffn_width", "encoder_ffn", student.ffn_widths[0]),
            ("decoder_ffn_width", "ffn", student.ffn_widths[1]),
        ):
            if (requested := getattr(section.prune, key)) is not None:
                changes[field] = require_at_most(f"prune.{key}", requested, available)
    return replace(student, **changes)


def _model_line(role: str, shape: WhisperShape) -> str:
    return (
        f"{role} {shape.parameters / 1e6:.1f} M parameters: encoder {shape.encoder_parameters / 1e6:.1f} M in "
        f"{shape.encoder_layers} layers, decoder {shape.decoder_parameters / 1e6:.1f} M in {shape.decoder_layers}"
    )


def _label_lines(section: LabelsSection | None) -> list[str]:
    """Return the disk space of stored logits, at 8 bytes for each of the `top_k` logits of a token."""
    if section is None or section.source is not None or not section.top_k:
        return []
    passes = 2 if section.timestamps else 1
    size_mb = 8 * section.top_k * _TOKENS_PER_HOUR * passes / 1e6
    return [f"disk    labels with {section.top_k} logits per token: {size_mb:.0f} MB per hour of speech"]


def _training_lines(section: TrainSection, teacher: WhisperShape, student: WhisperShape) -> list[str]:
    """Return the memory and the disk space that training takes."""
    trained = student.decoder_parameters + (0 if section.freeze_encoder else student.encoder_parameters)
    # In memory, in float32: the weights of student and teacher; a gradient and two AdamW moments per trained weight.
    loaded = student.parameters + (teacher.decoder_parameters if section.kl_weight > 0 else 0)
    if section.kl_weight > 0 and not section.freeze_encoder:
        loaded += teacher.encoder_parameters
    memory_gb = (4 * loaded + 12 * trained) / 1e9
    # On disk, in float32: the latest checkpoint with its two moments, and the best student.
    disk_gb = (8 * student.parameters + 8 * trained) / 1e9
    lines = [
        f"{section.name:<7} {trained / 1e6:.1f} M trained parameters; weights, gradients and AdamW take "
        f"{memory_gb:.2f} GB of memory, activations come on top",
        f"disk    checkpoint and student of {section.name}: {disk_gb:.2f} GB",
    ]
    if section.cache_encoder:
        utterance_mb = 2e-6 * teacher.source_positions * teacher.width
        lines.append(f"disk    encoder cache during {section.name}: {utterance_mb:.2f} MB per utterance")
    return lines


def _export_line(section: ExportSection, shape: WhisperShape, bound: str) -> str:
    """Return the size of the weights of each artefact. Files are somewhat larger, as they also contain the graph."""
    sizes_mb = {name: shape.parameters * _BYTES_PER_WEIGHT[precision] / 1e6 for name, _, precision in section.artefacts}
    sizes = ", ".join(f"{name} {size:.{1 if size < 10 else 0}f} MB" for name, size in sizes_mb.items())
    return f"export  {bound}: {sizes}" if sizes else "export  nothing"


def model_shape(model: str, key: str) -> WhisperShape | None:
    """Return the shape of a local model folder or of one of OpenAI's models on the Hub; None for another Hub id.

    Raises UserError, with the recipe key `key`, if there is no such folder or its configuration is invalid.
    """
    if (folder := local_model_folder(model, key)) is None:
        return HUB_SHAPES.get(model)
    try:
        return WhisperShape.from_config(json.loads((folder / "config.json").read_text()))
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: expected a Whisper configuration, found {error!r}") from error


def _check_paths(recipe: Recipe) -> None:
    """Raise UserError for the first file or folder of the recipe that does not exist."""
    for number, source in enumerate(recipe.corpus.sources):
        key = f"corpus.sources.{number}"
        _require_folder(f"{key}.audiofolder", source.audiofolder)
        _require_folder(f"{key}.audio", source.audio)
        _require_file(f"{key}.synthesis.sentences", source.synthesis.sentences if source.synthesis else None)
    if recipe.eval is not None:
        _require_folder("eval.noise.folder", recipe.eval.noise.folder if recipe.eval.noise else None)
        _require_folder("eval.long_form.folder", recipe.eval.long_form.folder if recipe.eval.long_form else None)
    if recipe.budget is not None:
        _require_file("budget.device", recipe.budget.device)
        for number, path in enumerate(recipe.budget.also):
            _require_file(f"budget.also.{number}", path)
        load_budgets(recipe.budget)
    _require_file("launch", recipe.launch)


def _require_folder(key: str, path: Path | None) -> None:
    if path is not None and not path.is_dir():
        raise UserError(_missing(key, path, "folder"))


def _require_file(key: str, path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise UserError(_missing(key, path, "file"))


def _missing(key: str, path: Path, kind: str) -> str:
    return f"{key}: expected a {kind} at {path} ({path.absolute()}), found none; correct the path"
