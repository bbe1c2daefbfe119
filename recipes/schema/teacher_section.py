"""TODO: recipes.schema.teacher_section."""

from typing import Literal

from recipes.schema.section import Section


class TeacherSection(Section):
    """The Whisper-format model that labels the audio and guides the student."""

    model: str
    """Local folder or Hub id (`owner/name`) in Whisper format: config, safetensors, tokenizer."""
    language: str | None = "en"
    """Language code of the audio; null for English-only models."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """What the teacher does with the speech."""
