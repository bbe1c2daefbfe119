"""The recipe of a planned student: what the plan decided, and defaults for everything else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.survey.recipe_defaults import learning_rate
from distill.planning.choice import StudentOption
from distill.planning.search_space import PlannedTeacher
from recipes.engine.recipe_writer import RecipeDraft


def draft_planned_recipe(
    name: str, option: StudentOption, teacher: PlannedTeacher, budget: Path, *, threads: int, language: str | None,
    audio: Sequence[Path], header: Sequence[str],
) -> RecipeDraft:  # fmt: skip
    """Return the draft of a recipe for a planned student.

    Args:
        name: Name of the run.
        option: The chosen student and the artefact that fits the budget.
        teacher: The teacher that the student is cut from.
        budget: Device budget file.
        threads: Threads of the benchmark.
        language: Language code of the audio; None for an English-only teacher.
        audio: Folders of audio; the demo's sentences where there are none.
        header: Comment lines at the top of the file.
    """
    candidate, (runtime, precision) = option.candidate, option.artefact
    encoder_is_cut = candidate.encoder_layers < teacher.shape.encoder_layers
    rate = learning_rate(teacher.shape.width)
    compress: dict[str, Any] = {}
    if candidate.seconds < teacher.seconds:
        compress["window"] = {"seconds": candidate.seconds}
    if candidate.tokens is not None:
        compress["vocabulary"] = {"tokens": candidate.tokens}
    demo: dict[str, Any] = {"synthesis": {"sentences": "recipes/demo/sentences.txt"}, "name": "spoken"}
    reasons = {
        "train.learning_rate": f"For a width of {teacher.shape.width}; wider students want less.",
        "train.freeze_encoder": "The encoder is cut, so it has to learn too.",
    }
    if not audio:
        reasons["corpus.sources"] = "Placeholder: put your own audio here."
    sources: list[dict[str, Any]] = [{"audio": str(folder)} for folder in audio]
    values = {
        "name": name,
        "teacher": {"model": teacher.model, "language": language},
        "corpus": {
            "sources": sources or [demo], "max_seconds": candidate.seconds,
        },
        "labels": {},
        "student": {
            "decoder_layers": candidate.decoder_layers,
            "encoder_layers": candidate.encoder_layers if encoder_is_cut else None,
        },
        "train": {"learning_rate": rate, "freeze_encoder": False} if encoder_is_cut else {"learning_rate": rate},
        "compress": compress or None,
        "heal": {"learning_rate": rate} if compress else None,
        "export": {"onnx": [], runtime: [precision]},
        "benchmark": {"threads": threads},
        "budget": {"device": str(budget), "required": True},
    }  # fmt: skip
    return RecipeDraft(values, {key: text for key, text in reasons.items() if _is_written(values, key)}, header)


def _is_written(values: dict[str, Any], key: str) -> bool:
    section, _, option = key.partition(".")
    return option in (values[section] or {})
