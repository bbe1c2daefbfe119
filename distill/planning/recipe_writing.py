"""The recipe of a planned student."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from distill.planning.choice import StudentOption
from distill.planning.search_space import PlannedTeacher
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError
from recipes.engine.check import check_recipe
from recipes.schema.recipe import validate_recipe


def refuse_existing(path: Path) -> None:
    """UserError where a recipe stands there already."""
    if path.exists():
        raise UserError(f"--write: expected no file at {path}, found one; name another, or remove it")


def write_recipe(
    path: Path, option: StudentOption, teacher: PlannedTeacher, budget: Path, *, threads: int, language: str | None,
    audio: Sequence[Path], comment: str,
) -> list[str]:  # fmt: skip
    """Write the recipe; what `sottovoce check` says of it. UserError as for any recipe that is not whole."""
    values = recipe_values(path, option, teacher, budget, threads=threads, language=language, audio=audio)
    said = check_recipe(validate_recipe(values, str(path)))
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    with atomic_write(path) as beside:
        beside.write_text("".join(f"# {line}\n" for line in [f"sottovoce run {path}", *comment.splitlines()]) + text)
    return said


def recipe_values(
    path: Path, option: StudentOption, teacher: PlannedTeacher, budget: Path, *, threads: int, language: str | None,
    audio: Sequence[Path],
) -> dict[str, Any]:  # fmt: skip
    """The sections: what the plan decided, and defaults for the rest."""
    candidate, (runtime, precision) = option.candidate, option.artefact
    cut = candidate.encoder_layers < teacher.shape.encoder_layers
    # Measured at width 192; wider students want less (recipes/NOTES.md).
    train: dict[str, Any] = {"learning_rate": 1e-3 if teacher.shape.width <= 192 else 1e-4}
    if cut:
        train["freeze_encoder"] = False
    compress: dict[str, Any] = {}
    if candidate.seconds < teacher.seconds:
        compress["window"] = {"seconds": candidate.seconds}
    if candidate.tokens is not None:
        compress["vocabulary"] = {"tokens": candidate.tokens}
    sources: list[dict[str, Any]] = [{"audio": str(folder)} for folder in audio]
    spoken = {"synthesis": {"sentences": "recipes/demo/sentences.txt"}, "name": "spoken"}
    values = {
        "name": path.parent.name if path.name == "recipe.yaml" else path.stem,
        "teacher": {"model": teacher.model, "language": language},
        "corpus": {"sources": sources or [spoken], "max_seconds": candidate.seconds},
        "labels": {},
        "student": {"decoder_layers": candidate.decoder_layers}
        | ({"encoder_layers": candidate.encoder_layers} if cut else {}),
        "train": train,
        "compress": compress or None,
        "heal": {"learning_rate": train["learning_rate"]} if compress else None,
        "export": {"onnx": [], runtime: [precision]},
        "benchmark": {"threads": threads},
        "budget": {"device": str(budget), "required": True},
    }
    return {key: value for key, value in values.items() if value is not None}
