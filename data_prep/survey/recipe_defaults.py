"""Defaults of a new recipe that fit the teacher, the audio and the machine, each with its reason.

The rules come from measurements in recipes/NOTES.md and from Distil-Whisper (Gandhi et al. 2023, arXiv 2311.00430):
two decoder layers, a learning rate of 1e-4 for wide teachers, labels further than a threshold from the transcript left
out. They are starting points that run, not results of a search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.survey.audio_survey import AudioSurvey
from data_prep.survey.machine_survey import MachineSurvey
from recipes.core.errors import UserError
from recipes.core.whisper_shape import POSITIONS_PER_SECOND, WhisperShape
from recipes.engine.recipe_writer import RecipeDraft

EPOCHS = 10
"""Passes over the training audio that a new recipe asks for, within MIN_STEPS and MAX_STEPS."""

MIN_STEPS, MAX_STEPS = {"cpu": 100, "gpu": 500}, {"cpu": 2_000, "gpu": 20_000}

PACK_BELOW = 0.5
"""Recordings are packed when their median is below this share of the teacher's window."""

MAX_LABEL_WER = 0.2
"""Labels further than this from a transcript are left out; Distil-Whisper used 0.1 on clean transcripts."""

SLOW_WIDTH = 384
"""Teachers from this width on take about a second for a clip on two cores, so the benchmark gets fewer runs: with the
defaults, five systems of whisper-tiny took a quarter of an hour."""

TEST_RECORDINGS = (5, 500)
"""Recordings held out for testing, where the audio has no test split: a tenth of them, within these bounds."""


def learning_rate(width: int) -> float:
    """Return a peak learning rate for a student of this width: 1e-3 at 192, falling as 1 / width, at least 1e-4.

    1e-3 was measured best at width 192 (recipes/NOTES.md); 5e-4 at 384 was stable on whisper-tiny.en; Distil-Whisper
    used 1e-4 at 1280.
    """
    return 1e-4 if width > 1000 else float(f"{1e-3 * 192 / max(width, 192):.0e}")


@dataclass(frozen=True)
class NewRecipe:
    """Everything that decides the defaults."""

    name: str
    teacher: str
    """Local folder or Hub id."""
    shape: WhisperShape
    """The teacher's; stands for whisper-small where a Hub id is not known."""
    english_only: bool
    """Whether the teacher knows no language but English, so that its prompt names none."""
    has_english_table: bool
    """Whether the teacher's folder has the spellings that Whisper's English text normaliser needs."""
    language: str | None
    """Language code given by the user."""
    audio: Sequence[AudioSurvey]
    machine: MachineSurvey
    budget: Path | None
    """Device budget file."""

    @property
    def window_seconds(self) -> int:
        """Longest clip that the teacher takes, in whole seconds."""
        return self.shape.source_positions // POSITIONS_PER_SECOND

    @property
    def transcribed(self) -> bool:
        """Whether test recordings can be scored against transcripts."""
        return all(survey.has_test_transcripts for survey in self.audio)

    @property
    def packs(self) -> bool:
        """Whether short neighbours are joined: recordings are short and their speakers are known."""
        median = max(survey.median_seconds for survey in self.audio)
        return median < PACK_BELOW * self.window_seconds and all(survey.speakers for survey in self.audio)

    @property
    def windows(self) -> int:
        """Number of windows in the training audio."""
        seconds = 3600 * sum(survey.hours for survey in self.audio)
        if self.packs:
            return max(1, round(seconds / (0.9 * self.window_seconds)))
        pieces = max(1.0, max(survey.median_seconds for survey in self.audio) / self.window_seconds)
        return max(1, round(sum(survey.total for survey in self.audio) * pieces))


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
    for part in (_language, _splits, _packing, _quality, _launch, _training, _measuring):
        section_values, section_reasons = part(new)
        for section, options in section_values.items():
            values[section] = values.get(section, {}) | options if isinstance(options, dict) else options
        reasons |= section_reasons
    order = ["name", "launch", "teacher", "corpus", "labels", "quality", "student", "train", "export", "eval"]
    values = {key: values[key] for key in [*order, "benchmark", "budget"] if key in values}
    return RecipeDraft(values, reasons, header)


Part = tuple[dict[str, Any], dict[str, str]]
"""Options by section, and reasons by dotted key."""


def _source(survey: AudioSurvey) -> dict[str, Any]:
    return survey.source.model_dump(mode="json", exclude_defaults=True)


def _language(new: NewRecipe) -> Part:
    if new.english_only:
        if new.language not in (None, "en"):
            raise UserError(f"--language: expected en, the only language of {new.teacher}, found {new.language}")
        reason = "The teacher knows English only; its prompt names no language."
        return {"teacher": {"language": None}}, {"teacher.language": reason}
    listed = sum((survey.languages for survey in new.audio), start=new.audio[0].languages.__class__())
    if len(listed) > 1 and new.language is None:
        most = listed.most_common(1)[0][0]
        reason = f"The metadata's language column says {', '.join(sorted(listed))}; each clip is prompted in its own."
        return {"teacher": {"language": most}, "labels": {"language": "column"}}, {"labels.language": reason}
    language = new.language or next(iter(listed), None)
    if language is None:
        raise UserError(
            f"--language: {new.teacher} knows many languages and the audio names none; "
            "give the language that is spoken, such as --language en"
        )
    return {"teacher": {"language": language}}, {}


def _splits(new: NewRecipe) -> Part:
    total = sum(survey.total for survey in new.audio)
    tested = all(survey.recordings["test"] for survey in new.audio)
    options: dict[str, Any] = {}
    reasons = {}
    if not tested:
        least, most = TEST_RECORDINGS
        share = min(0.5, max(0.1, least / total), max(most / total, 0.001))
        options["test_fraction"] = float(f"{share:.2g}")
        reasons["corpus.test_fraction"] = (
            "The audio has no test split: this share of its recordings is held out and never trained on."
        )
    return {"corpus": options}, reasons


def _packing(new: NewRecipe) -> Part:
    if not new.packs:
        return {}, {}
    median = max(survey.median_seconds for survey in new.audio)
    reason = (
        f"Recordings are short (median {median:.1f} s): neighbours of one speaker are joined, since the encoder "
        f"always works on {new.window_seconds} s."
    )
    return {"corpus": {"pack": True}}, {"corpus.pack": reason}


def _quality(new: NewRecipe) -> Part:
    if not any(survey.transcribed for survey in new.audio):
        return {}, {}
    reason = "Labels further than this from the transcript are left out of training, as wrong or as another text."
    return {"quality": {"max_wer": MAX_LABEL_WER}}, {"quality.max_wer": reason}


def _launch(new: NewRecipe) -> Part:
    if len(new.machine.gpus) <= 1 and not new.machine.gpus:
        reason = "One process on all cores."
        return {"launch": "recipes/accelerate/cpu.yaml"}, {"launch": reason}
    if len(new.machine.gpus) > 1:
        reason = f"One process a GPU; edit num_processes there to use fewer or more than {len(new.machine.gpus)}."
        return {"launch": "recipes/accelerate/ddp.yaml"}, {"launch": reason}
    return {}, {}


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
    sections: dict[str, Any] = {"export": {"onnx": ["fp32", "fp16", "int8"]}, "eval": options}
    if new.shape.width >= SLOW_WIDTH:
        sections["benchmark"] = {"clips": 10, "warmup": 5, "runs": 30, "turns": 20}
        reasons["benchmark.runs"] = "Enough for a first look; the defaults measure three times as long."
    if new.budget is not None:
        sections["budget"] = {"device": str(new.budget), "required": False}
        reasons["budget.required"] = "true ends the run with exit status 3 when nothing fits the device."
    return sections, reasons
