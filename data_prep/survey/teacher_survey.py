"""What a teacher is: its shape, and the languages that it knows, found without loading or downloading it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError
from recipes.core.model_folder import local_model_folder
from recipes.core.whisper_shape import HUB_SHAPES, WhisperShape
from recipes.engine.check import model_shape

ASSUMED = "openai/whisper-small"
"""Stands for a Hub id that is not known here."""


@dataclass(frozen=True)
class TeacherSurvey:
    """The parts of a teacher that decide a recipe's defaults."""

    shape: WhisperShape
    english_only: bool
    """Whether it knows no language but English, so that its prompt names none."""
    has_english_table: bool
    """Whether its folder has the spellings that Whisper's English text normaliser needs."""
    languages: tuple[str, ...] = ()
    """Language codes that it knows; empty where that is not known here, or for an English-only teacher."""
    remarks: tuple[str, ...] = ()
    """What the user should know."""


def survey_teacher(model: str) -> TeacherSurvey:
    """Look at a teacher given as a Hub id or a local folder.

    Raises UserError where it is neither, or where a file of the folder cannot be used.
    """
    folder = local_model_folder(model, "--teacher")
    if folder is None:
        if (shape := HUB_SHAPES.get(model)) is not None:
            english_only = model.endswith(".en")
            return TeacherSurvey(shape, english_only, True, () if english_only else _whisper_languages())
        remark = f"teacher  {model} is not known here: learning rate and steps are those for {ASSUMED}; check the id"
        return TeacherSurvey(HUB_SHAPES[ASSUMED], model.endswith(".en"), True, remarks=(remark,))
    _read_object(folder / "config.json")
    shape = model_shape(model, "--teacher")
    assert shape is not None
    tokens = _read_object(folder / "generation_config.json").get("lang_to_id") or {}
    languages = tuple(token.strip("<|>") for token in tokens)
    return TeacherSurvey(shape, not languages, (folder / "normalizer.json").is_file(), languages)


def _read_object(file: Path) -> dict[str, Any]:
    """Return the contents of a JSON file. Raises UserError where it is not a JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # what is no JSON, and what is no UTF-8
        raise UserError(f"--teacher: expected a JSON object in {file}, found {error}; repair the file") from error
    if not isinstance(values, dict):
        raise UserError(f"--teacher: expected a JSON object in {file}, found {values!r:.40}; repair the file")
    return values


def _whisper_languages() -> tuple[str, ...]:
    """Return the codes of the languages of OpenAI's multilingual models."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return tuple(LANGUAGES)
