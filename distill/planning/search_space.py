"""The students that can be cut from a teacher, and those among them that are measured."""

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
"""Windows to plan with, in seconds, in addition to the teacher's own."""
TOKENS = (20_000, 8_000)
"""Numbers of text tokens to plan with, in addition to all of the teacher's."""
DEPTHS = 8
"""The most depths that are tried for the encoder and for the decoder, evenly spaced. Shapes that are measured are not
deeper than this either: each layer costs as much as the one before it, so that the fit extends to deeper shapes."""


@dataclass(frozen=True)
class Candidate:
    """A student as a recipe describes it. It is as wide as the teacher, because its layers are the teacher's."""

    encoder_layers: int
    decoder_layers: int
    seconds: int
    """Length of the window."""
    tokens: int | None
    """Number of text tokens; None for all of the teacher's."""


@dataclass(frozen=True)
class PlannedTeacher:
    """The model that students are cut from: its shape and its tokenizer. A plan does not need its weights."""

    model: str
    """Name as a recipe gives it: a Hub id or a local folder."""
    shape: WhisperShape
    processors: Path
    """Folder of the tokenizer, the feature extractor and the generation config."""
    text_tokens: int
    """Number of tokens that are text; special tokens and timestamps come after them."""

    @classmethod
    def find(cls, name: str, vocabulary: Path | None, language: str | None) -> Self:
        """Find a teacher by the name of a Whisper shape (`tiny`), by its Hub id, or in a local folder.

        A named shape comes without a tokenizer. It is read from the folder `vocabulary`, or from `$VOCABULARY`.
        Raises UserError if there is no such teacher or tokenizer, or if the tokenizer does not know `language`.
        """
        model = f"openai/whisper-{name}" if name in WHISPER_SHAPES else name
        shape = HUB_SHAPES.get(model)
        if shape is None:
            if not Path(name).is_dir():
                raise UserError(
                    f"--teacher: expected {', '.join(WHISPER_SHAPES)} or a folder in Whisper format, found {name}; "
                    "correct the name"
                )
            shape, vocabulary = model_shape(name, "--teacher"), Path(name)
            assert shape is not None
        folder = vocabulary or _default_vocabulary(model)
        features = JsonSettings.read(folder / "preprocessor_config.json")
        tokens = load_tokenizer(folder).get_vocab(with_added_tokens=True).values()
        shape = replace(
            shape, vocabulary=1 + max(tokens), mel_bins=features["feature_size"],
            source_positions=features["chunk_length"] * POSITIONS_PER_SECOND,
        )  # fmt: skip
        generation = JsonSettings.read(folder / "generation_config.json")
        languages = generation.get("lang_to_id") if generation.get("is_multilingual") else None
        if languages and f"<|{language}|>" not in languages:
            raise UserError(f"--language: expected a code that {folder} knows, such as en, found {language}")
        return cls(model, shape, folder, generation["eos_token_id"])

    @property
    def seconds(self) -> int:
        """Length of the teacher's window."""
        return self.shape.source_positions // POSITIONS_PER_SECOND

    def cut(self, candidate: Candidate) -> WhisperShape:
        """Return the shape of a student, with the vocabulary and window that `distill.compress` would give it."""
        vocabulary = self.shape.vocabulary
        if candidate.tokens is not None:
            # Compression also removes the timestamps beyond the window; there is one for each encoder position.
            timestamps = POSITIONS_PER_SECOND * (self.seconds - candidate.seconds)
            vocabulary -= self.text_tokens - candidate.tokens + timestamps
        shape = self.shape.cut(candidate.encoder_layers, candidate.decoder_layers)
        return replace(shape, vocabulary=vocabulary, source_positions=candidate.seconds * POSITIONS_PER_SECOND)


def _default_vocabulary(model: str) -> Path:
    folder = os.environ.get("VOCABULARY")
    if folder is None or not (Path(folder) / "tokenizer.json").is_file():
        raise UserError(
            f"--vocabulary: expected tokenizer.json and preprocessor_config.json of {model} in a folder that "
            f"--vocabulary or the variable VOCABULARY names, found {folder or 'neither'}; name a folder that has them, "
            "for example a download of the model without its weights"
        )
    return Path(folder)


@dataclass(frozen=True)
class SearchSpace:
    """The values that each property of a student may take, in rising order."""

    encoder_layers: Sequence[int]
    decoder_layers: Sequence[int]
    seconds: Sequence[int]
    """Lengths of the window."""
    tokens: Sequence[int | None]
    """Numbers of text tokens; None, for all of the teacher's, comes last."""

    @classmethod
    def of(cls, teacher: PlannedTeacher, min_seconds: float) -> Self:
        """Return everything that a teacher allows, with windows of at least `min_seconds`."""
        windows = {seconds for seconds in WINDOWS if min_seconds <= seconds < teacher.seconds} | {teacher.seconds}
        tokens = sorted(count for count in TOKENS if count < teacher.text_tokens)
        return cls(
            _depths(teacher.shape.encoder_layers), _depths(teacher.shape.decoder_layers), sorted(windows),
            [*tokens, None],
        )  # fmt: skip

    def candidates(self) -> list[Candidate]:
        """Return every combination of the values."""
        return [
            Candidate(encoder, decoder, seconds, tokens)
            for encoder in self.encoder_layers
            for decoder in self.decoder_layers
            for seconds in self.seconds
            for tokens in self.tokens
        ]

    def design(self) -> list[Candidate]:
        """Return the candidates to measure, without repetitions.

        They are four corners of the space, where the terms of the cost differ most from each other, and four candidates
        between them. Depths above `DEPTHS` are not measured.
        """
        encoder, decoder = (
            [depth for depth in depths if depth <= DEPTHS] or depths[:1]
            for depths in (self.encoder_layers, self.decoder_layers)
        )
        low, middle, high = 0.0, 0.5, 1.0
        points = (  # position in the range of: encoder layers, decoder layers, window, tokens
            (high, high, high, high), (low, low, high, low), (high, low, low, low), (low, high, low, high),
            (middle, high, high, low), (high, middle, middle, high), (low, middle, middle, low),
            (middle, low, high, high),
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
