"""What decoding needs from a model folder in Whisper format: prompt tokens, limits, window length and tokenizer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from recipes.core.errors import UserError, one_line


class JsonSettings(dict[str, Any]):
    """The contents of a JSON file in a model folder. `settings[key]` raises UserError if the file lacks the key."""

    path: Path
    """The file that was read; error messages quote it."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raises UserError if it is missing, unreadable or not a JSON object."""
        try:
            settings = cls(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: expected a JSON file of a Whisper-format model, found {one_line(error)}"
            ) from error
        settings.path = path
        return settings

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path}: expected the key {key} of a Whisper-format model, found none; export it again")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model as an artefact's own files declare them; None if they do not."""

    num_mel_bins: int | None
    frames: int | None
    """Number of log-mel frames in the window."""
    vocab_size: int | None

    def check_config(self, folder: Path, artefact: str) -> None:
        """Raise UserError if the folder's config.json disagrees: then the folder holds files of two models.

        `artefact` is the artefact's name for the error message.
        """
        config = JsonSettings.read(folder / "config.json")
        expected = {
            "num_mel_bins": config["num_mel_bins"], "frames": 2 * config["max_source_positions"],
            "vocab_size": config["vocab_size"],
        }  # fmt: skip
        for name, value in expected.items():
            if (found := getattr(self, name)) not in (None, value):
                raise UserError(
                    f"{artefact}: expected {name} {value} as in {folder / 'config.json'}, found {found} in its own "
                    "files; they belong to different models, export again"
                )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the folder's tokenizer.json. Raises UserError if it is missing or broken."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exceptions
        raise UserError(
            f"{path}: expected a tokenizer, found {one_line(error)}; copy the one that the model was exported with"
        ) from error


def no_speech_token(tokenizer: Tokenizer) -> int | None:
    """Return the token whose probability at the first decoder position is the probability of no speech.

    It is looked up by its newer and its older name; None if the vocabulary has neither.
    """
    token: int | None = tokenizer.token_to_id("<|nospeech|>") or tokenizer.token_to_id("<|nocaptions|>")
    return token


@dataclass(frozen=True)
class ModelFormat:
    """The settings of a model folder that decoding needs."""

    prompt: list[int]
    """Tokens that precede every text: start, language, task, no-timestamps. English-only models have no language and
    task."""
    end: int
    """The end-of-text token."""
    suppress: list[int]
    """Tokens that must not be generated."""
    suppress_first: list[int]
    """Tokens that must not be generated as the first one."""
    max_length: int
    """Maximum number of tokens of a text, the prompt included."""
    mel_bins: int
    window_samples: int
    """Length of the encoder's window in samples at 16 kHz."""
    start_of_previous: int | None
    """Token that introduces previous text; None if the vocabulary has none."""
    languages: dict[str, int] = field(default_factory=dict)
    """Token of each language code; empty for English-only models."""

    @property
    def no_timestamps(self) -> int:
        """The token that requests text without timestamps."""
        return self.prompt[-1]

    @property
    def timestamp_begin(self) -> int:
        """The timestamp token of 0.00 s; all tokens from it on are timestamps."""
        return self.no_timestamps + 1

    def prompt_for(self, language: str | None) -> list[int]:
        """Return the prompt with another language code; the unchanged prompt for an English-only model."""
        if not self.languages:
            return list(self.prompt)
        assert language is not None
        start, _, *rest = self.prompt
        return [start, self.languages[language], *rest]

    @classmethod
    def load(cls, folder: Path, language: str | None, task: str) -> "ModelFormat":
        """Read config.json, generation_config.json and preprocessor_config.json of a model folder.

        Raises UserError if the model has no such language or task, or if the files disagree on mel bins or window.
        """
        config = JsonSettings.read(folder / "config.json")
        generation = JsonSettings.read(folder / "generation_config.json")
        features = JsonSettings.read(folder / "preprocessor_config.json")
        prompt = [generation["decoder_start_token_id"]]
        languages = generation["lang_to_id"] if generation.get("is_multilingual", False) else {}
        if languages:
            if f"<|{language}|>" not in languages:
                known = ", ".join(sorted(name.strip("<|>") for name in languages))
                raise UserError(f"teacher.language: expected one of {known} (languages of {folder}), found {language}")
            prompt += [languages[f"<|{language}|>"], generation["task_to_id"][task]]
        elif task != "transcribe":
            raise UserError(f"teacher.task: expected transcribe, since {folder} is English-only, found {task}")
        if features["feature_size"] != config["num_mel_bins"]:
            raise UserError(
                f"{folder}/preprocessor_config.json: expected feature_size {config['num_mel_bins']}, the mel bins of "
                f"config.json, found {features['feature_size']}; make the files agree"
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
