"""Defaults of a new recipe that fit the teacher, the audio and the machine, each with its reason.

The rules come from measurements in recipes/NOTES.md and from Distil-Whisper (Gandhi et al. 2023, arXiv 2311.00430):
two decoder layers, a learning rate of 1e-4 for wide teachers, labels further than a threshold from the transcript left
out. They are starting points that run, not results of a search.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.survey.audio_survey import AudioSurvey
from data_prep.survey.corpus_defaults import choose_language, choose_packing, choose_quality, choose_splits
from data_prep.survey.new_recipe import NewRecipe, Part
from recipes.engine.recipe_writer import RecipeDraft, shipped_file

EPOCHS = 10
"""Passes over the training audio that a new recipe asks for, within MIN_STEPS and MAX_STEPS."""

MIN_STEPS, MAX_STEPS = {"cpu": 100, "gpu": 500}, {"cpu": 2_000, "gpu": 20_000}

SLOW_WIDTH = 384
"""Teachers from this width on take about a second for a clip on two cores, so the benchmark gets fewer runs: with the
defaults, five systems of whisper-tiny took a quarter of an hour."""


def learning_rate(width: int) -> float:
    """Return a peak learning rate for a student of this width: 1e-3 at 192, falling as 1 / width, at least 1e-4.

    1e-3 was measured best at width 192 (recipes/NOTES.md); 5e-4 at 384 was stable on whisper-tiny.en; Distil-Whisper
    used 1e-4 at 1280.
    """
    return 1e-4 if width > 1000 else float(f"{1e-3 * 192 / max(width, 192):.0e}")


def draft_recipe(new: NewRecipe, header: Sequence[str]) -> RecipeDraft:
    """Return the sections of a new recipe with the reason for each value that was chosen for this case."""
    values: dict[str, Any] = {
        "name": new.name,
        "teacher": {"model": new.teacher},
        "corpus": {"sources": [_source(survey) for survey in new.audio], "max_seconds": new.window_seconds},
        "labels": {"batch_size": "auto"},
        "student": {"decoder_layers": min(2, new.shape.decoder_layers)},
    }
    reasons = {
        "corpus.max_seconds": "The teacher's window; longer recordings are split at silences.",
        "student.decoder_layers": f"Of the teacher's {new.shape.decoder_layers}; the encoder is copied whole.",
    }
    for part in (choose_language, choose_splits, choose_packing, choose_quality, _launch, _training, _measuring):
        section_values, section_reasons = part(new)
        for section, options in section_values.items():
            values[section] = values.get(section, {}) | options if isinstance(options, dict) else options
        reasons |= section_reasons
    order = ["name", "launch", "teacher", "corpus", "labels", "quality", "student", "train", "export", "eval"]
    values = {key: values[key] for key in [*order, "benchmark", "budget"] if key in values}
    return RecipeDraft(values, reasons, header)


def _source(survey: AudioSurvey) -> dict[str, Any]:
    return survey.source.model_dump(mode="json", exclude_defaults=True)


def _launch(new: NewRecipe) -> Part:
    gpus = len(new.machine.gpus)
    if gpus == 1:
        return {}, {}
    name, reason = "cpu.yaml", "One process on all cores."
    if gpus:
        name, reason = "ddp.yaml", f"One process a GPU; edit num_processes there to use fewer or more than {gpus}."
    return {"launch": str(shipped_file(Path("recipes/accelerate") / name))}, {"launch": reason}


def _training(new: NewRecipe) -> Part:
    gpus = len(new.machine.gpus)
    device = "gpu" if gpus else "cpu"
    batch_size = 16 if not gpus else 32 * gpus
    wanted = EPOCHS * new.windows / batch_size
    steps = int(round(min(MAX_STEPS[device], max(MIN_STEPS[device], wanted)), -1))
    passes = steps * batch_size / new.windows
    options: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": "auto" if gpus else None,
        "learning_rate": learning_rate(new.shape.width),
        "warmup_steps": min(500, max(10, steps // 10)),
        "eval_steps": max(20, steps // 5),
        "save_steps": max(20, steps // 10),
        "workers": min(8, max(1, new.machine.cores // max(1, gpus) - 1)) if gpus else 1,
    }
    reasons = {
        "train.steps": f"About {passes:.0f} passes over some {new.windows} windows of audio.",
        "train.learning_rate": f"For a width of {new.shape.width}; wider students want less.",
    }
    if gpus:
        options["precision"] = "bf16" if new.machine.bf16 else "fp16"
    cache_gb = 2e-9 * new.shape.source_positions * new.shape.width * new.windows
    if not gpus and cache_gb < 0.25 * new.machine.free_disk_gb:
        options["cache_encoder"] = True
        reasons["train.cache_encoder"] = (
            f"The frozen encoder runs once over the audio and its states are kept on disk ({cache_gb:.2g} GB); "
            "remove this line to train with `augment`."
        )
    return {"train": options}, reasons


def _measuring(new: NewRecipe) -> Part:
    english = new.english_only or new.language == "en"
    options: dict[str, Any] = {"normalizer": "english" if english and new.has_english_table else "basic"}
    reasons = {}
    if not new.transcribed:
        options["reference"] = "teacher"
        reasons["eval.reference"] = (
            "The test recordings have no transcripts: word error rates count differences from the teacher's text."
        )
    export = {"onnx": ["fp32", "fp16", "int8"], "parity": {"min_equal_text": {"int8": 0.0}}}
    reasons["export.parity.min_equal_text"] = (
        "A clip of half a minute rarely keeps every word in int8: whisper-tiny.en kept 1 text of 2 where its WER fell "
        "by 2 points. Error and WER decide; see runs/NAME/export/parity.json."
    )
    sections: dict[str, Any] = {"export": export, "eval": options}
    if new.shape.width >= SLOW_WIDTH:
        sections["benchmark"] = {"clips": 10, "warmup": 5, "runs": 30, "turns": 20}
        reasons["benchmark.runs"] = "Enough for a first look; the defaults measure three times as long."
    if new.budget is not None:
        sections["budget"] = {"device": str(new.budget), "required": False}
        reasons["budget.required"] = "true ends the run with exit status 3 when nothing fits the device."
    return sections, reasons
