"""The `teacher` section: the model that labels the audio and guides the student."""

from typing import Literal

from recipes.schema.section import Section


class TeacherSection(Section):
    """The Whisper model that labels the audio and guides the training of the student."""

    model: str
    """Local folder or Hub id (`owner/name`) of a model in Whisper format: configuration, safetensors weights,
    tokenizer."""
    language: str | None = "en"
    """Language code of the audio. Null for English-only models, which have no language token."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Whether the teacher transcribes speech in its own language or translates it into English."""
