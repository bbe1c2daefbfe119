"""What decoding needs to know of a model folder: its prompt, limits and window, and its tokenizer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from recipes.core.errors import UserError, one_line


class JsonSettings(dict[str, Any]):
    """A JSON file of a model folder; a key that is not there is a UserError."""

    path: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for a file that is missing, unreadable or no JSON object."""
        try:
            settings = cls(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: expected a JSON file of a Whisper-format model, found {error}") from error
        settings.path = path
        return settings

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path}: expected the key {key} of a Whisper-format model, found none; export it again")


@dataclass(frozen=True)
class ModelSizes:
    """What an artefact's own files say of the model; None where they do not."""

    num_mel_bins: int | None
    frames: int | None
    """Of the window's log-mel."""
    vocab_size: int | None

    def check(self, folder: Path, artefact: str) -> None:
        """UserError where the folder's config.json says something else: files of two models in one folder."""
        config = JsonSettings.read(folder / "config.json")
        expected = {
            "num_mel_bins": config["num_mel_bins"], "frames": 2 * config["max_source_positions"],
            "vocab_size": config["vocab_size"],
        }  # fmt: skip
        for name, value in expected.items():
            if (found := getattr(self, name)) not in (None, value):
                raise UserError(
                    f"{artefact}: expected {name} {value} as in {folder / 'config.json'}, found {found} in its own "
                    "files; the two are of different models, export again"
                )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json; UserError where it is missing or broken."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no class of its own
        raise UserError(
            f"{path}: expected a tokenizer, found {one_line(error)}; copy the one the model was exported with"
        ) from error


def no_speech_token(tokenizer: Tokenizer) -> int | None:
    """The token whose probability in the first place is that of no speech, by its new or its old name."""
    found: int | None = tokenizer.token_to_id("<|nospeech|>") or tokenizer.token_to_id("<|nocaptions|>")
    return found


@dataclass(frozen=True)
class ModelFormat:
    """What decoding needs to know of a model folder."""

    prompt: list[int]
    """Start, language, task, no-timestamps: as far as the vocabulary has them."""
    end: int
    suppress: list[int]
    suppress_first: list[int]
    max_length: int
    """Tokens, prompt included."""
    mel_bins: int
    window_samples: int
    start_of_previous: int | None
    """Token before previous text; None where the vocabulary has none."""
    languages: dict[str, int] = field(default_factory=dict)
    """Token of each language code; none for English-only models."""

    @property
    def no_timestamps(self) -> int:
        """The token that asks for text without timestamps."""
        return self.prompt[-1]

    @property
    def timestamp_begin(self) -> int:
        """The token of 0.00 s; it and all after it are timestamps."""
        return self.no_timestamps + 1

    def prompt_in(self, language: str | None) -> list[int]:
        """The prompt with another language in its place; as it stands where the model has none."""
        if not self.languages:
            return list(self.prompt)
        assert language is not None
        start, _, *rest = self.prompt
        return [start, self.languages[language], *rest]

    @classmethod
    def load(cls, folder: Path, language: str | None, task: str) -> "ModelFormat":
        """Read config, generation_config and preprocessor_config; UserError for a language it does not have."""
        config = JsonSettings.read(folder / "config.json")
        generation = JsonSettings.read(folder / "generation_config.json")
        features = JsonSettings.read(folder / "preprocessor_config.json")
        prompt = [generation["decoder_start_token_id"]]
        languages = generation["lang_to_id"] if generation.get("is_multilingual", False) else {}
        if languages:
            if f"<|{language}|>" not in languages:
                known = ", ".join(sorted(name.strip("<|>") for name in languages))
                raise UserError(f"teacher.language: expected one of {known} (of {folder}), found {language}")
            prompt += [languages[f"<|{language}|>"], generation["task_to_id"][task]]
        elif task != "transcribe":
            raise UserError(f"teacher.task: {folder} is English-only and can only transcribe, found {task}")
        if features["feature_size"] != config["num_mel_bins"]:
            raise UserError(
                f"{folder}/preprocessor_config.json: expected feature_size {config['num_mel_bins']}, the mel bins of "
                f"config.json, found {features['feature_size']}; make them agree"
            )
        window = features.get("n_samples") or features["chunk_length"] * 16_000
        frames = 2 * config["max_source_positions"]
        if window != frames * 160:
            raise UserError(
                f"{folder}/preprocessor_config.json: expected n_samples {frames * 160} for the "
                f"{config['max_source_positions']} encoder positions of config.json, found {window}; make them agree"
            )
        return cls(
            prompt=[*prompt, generation["no_timestamps_token_id"]],
            end=generation["eos_token_id"],
            suppress=list(generation.get("suppress_tokens") or []),
            suppress_first=list(generation.get("begin_suppress_tokens") or []),
            max_length=min(generation.get("max_length") or 448, config["max_target_positions"]),
            mel_bins=config["num_mel_bins"],
            window_samples=window,
            start_of_previous=generation.get("prev_sot_token_id"),
            languages={name.strip("<|>"): token for name, token in languages.items()},
        )
