"""Which students can be cut from a teacher, and which of them are measured."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from eval.runtimes.model_format import JsonSettings, load_tokenizer
from recipes.core.errors import UserError
from recipes.core.whisper_shape import HUB_SHAPES, POSITIONS_PER_SECOND, WHISPER_SHAPES, WhisperShape
from recipes.engine.check import model_shape

WINDOWS = (25, 20, 15, 10, 7, 5, 3)
"""Seconds; the teacher's own beside."""
TOKENS = (20_000, 8_000)
"""Text tokens; all of the teacher's beside."""
DEPTHS = 8
"""Depths tried of a part with more layers than these, evenly spaced; none deeper is measured, since a layer costs what
the one before did."""


@dataclass(frozen=True)
class Candidate:
    """A student as a recipe asks for it; its width is the teacher's, whose layers it copies."""

    encoder_layers: int
    decoder_layers: int
    seconds: int
    """Window."""
    tokens: int | None
    """Text tokens; None for all of the teacher's."""


@dataclass(frozen=True)
class PlannedTeacher:
    """What is cut: a shape and a tokenizer, for weights play no part."""

    model: str
    """As a recipe names it."""
    shape: WhisperShape
    processors: Path
    """Folder of tokenizer, feature extractor and generation config."""
    text_tokens: int

    @classmethod
    def find(cls, name: str, vocabulary: Path | None, language: str | None) -> Self:
        """By the name of a shape, a Hub id of one, or a local folder; UserError for any other, or another language.

        A shape has no tokenizer: it is that of `vocabulary`, by default of $VOCABULARY.
        """
        model = f"openai/whisper-{name}" if name in WHISPER_SHAPES else name
        shape = HUB_SHAPES.get(model)
        if shape is None:
            if not Path(name).is_dir():
                raise UserError(
                    f"--teacher: expected {', '.join(WHISPER_SHAPES)} or a folder in Whisper format, found {name}; correct it"
                )
            shape, vocabulary = model_shape(name, "--teacher"), Path(name)
            assert shape is not None
        folder = vocabulary or _vocabulary(model, shape)
        features = JsonSettings.read(folder / "preprocessor_config.json")
        tokens = load_tokenizer(folder).get_vocab(with_added_tokens=True).values()
        shape = replace(
            shape, vocabulary=1 + max(tokens), mel_bins=features["feature_size"],
            source_positions=features["chunk_length"] * POSITIONS_PER_SECOND,
        )  # fmt: skip
        generation = JsonSettings.read(folder / "generation_config.json")
        known = generation.get("lang_to_id") if generation.get("is_multilingual") else None
        if known and f"<|{language}|>" not in known:
            raise UserError(f"--language: expected a code such as en that {folder} knows, found {language}")
        return cls(model, shape, folder, generation["eos_token_id"])

    @property
    def seconds(self) -> int:
        """Window."""
        return self.shape.source_positions // POSITIONS_PER_SECOND

    def cut(self, candidate: Candidate) -> WhisperShape:
        """The student's shape: what `distill.compress` leaves of tokens and window."""
        vocabulary = self.shape.vocabulary
        if candidate.tokens is not None:  # timestamps, one a position, end with the window
            shorter = POSITIONS_PER_SECOND * (self.seconds - candidate.seconds)
            vocabulary -= self.text_tokens - candidate.tokens + shorter
        shape = self.shape.cut(candidate.encoder_layers, candidate.decoder_layers)
        return replace(shape, vocabulary=vocabulary, source_positions=candidate.seconds * POSITIONS_PER_SECOND)


def _vocabulary(model: str, shape: WhisperShape) -> Path:
    kind = "large-v3" if shape.mel_bins == 128 else "english" if model.endswith(".en") else "multilingual"
    folder = Path(os.environ.get("VOCABULARY", f"../shared/whisper-vocab/{kind}"))
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"--vocabulary: expected tokenizer.json and preprocessor_config.json of {model} in {folder}, found none; "
            "name a folder with them, such as a download of it without its weights"
        )
    return folder


@dataclass(frozen=True)
class SearchSpace:
    """The values that a student may take."""

    encoder_layers: Sequence[int]
    decoder_layers: Sequence[int]
    seconds: Sequence[int]
    tokens: Sequence[int | None]

    @classmethod
    def of(cls, teacher: PlannedTeacher, least_seconds: float) -> Self:
        """All that a teacher allows, no window shorter than the clips; rising."""
        windows = {each for each in WINDOWS if least_seconds <= each < teacher.seconds} | {teacher.seconds}
        kept = sorted(each for each in TOKENS if each < teacher.text_tokens)
        return cls(
            _depths(teacher.shape.encoder_layers), _depths(teacher.shape.decoder_layers), sorted(windows), [*kept, None]
        )

    def candidates(self) -> list[Candidate]:
        """Every combination."""
        return [
            Candidate(encoder, decoder, seconds, tokens)
            for encoder in self.encoder_layers
            for decoder in self.decoder_layers
            for seconds in self.seconds
            for tokens in self.tokens
        ]

    def design(self) -> list[Candidate]:
        """What is measured: corners, where each cost stands out, and two shapes inside; each once."""
        encoder, decoder = (
            [each for each in layers if each <= DEPTHS] or layers[:1]
            for layers in (self.encoder_layers, self.decoder_layers)
        )
        least, middle, most = 0.0, 0.5, 1.0
        points = (  # encoder layers, decoder layers, window, tokens
            (most, most, most, most), (least, least, most, least), (most, least, least, least),
            (least, most, least, most), (middle, most, most, least), (most, middle, middle, most),
            (least, middle, middle, least), (middle, least, most, most),
        )  # fmt: skip
        return list(dict.fromkeys(
            Candidate(_at(encoder, point[0]), _at(decoder, point[1]), _at(self.seconds, point[2]),
                      self.tokens[round(point[3] * (len(self.tokens) - 1))])
            for point in points
        ))  # fmt: skip


def _depths(layers: int) -> list[int]:
    return sorted({round(depth) for depth in np.linspace(1, layers, min(layers, DEPTHS)).tolist()})


def _at(values: Sequence[int], share: float) -> int:
    return values[round(share * (len(values) - 1))]
