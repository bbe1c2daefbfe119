"""What decides the defaults of a new recipe: the teacher, the audio, the machine, and what the user has said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.survey.audio_survey import AudioSurvey
from data_prep.survey.machine_survey import MachineSurvey
from recipes.core.whisper_shape import POSITIONS_PER_SECOND, WhisperShape

Part = tuple[dict[str, Any], dict[str, str]]
"""Options by section, and reasons by dotted key."""

PACK_BELOW = 0.5
"""Recordings are packed when their median is below this share of the teacher's window."""


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
    known_languages: Sequence[str] = ()
    """Language codes that the teacher knows; empty where that is not known."""

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
