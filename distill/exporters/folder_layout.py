"""The folder that other loaders expect: every JSON and TXT they read, copied from a checkpoint or derived from it.

transformers 5 saves processor_config.json, tokenizer.json and tokenizer_config.json alone. What others read:

    transformers.js 4.3     config, generation_config, preprocessor_config, processor_config, tokenizer,
                            tokenizer_config
    optimum-onnx 0.1        config, onnx/generation_config; with transformers 4's processor preprocessor_config,
                            tokenizer, tokenizer_config, special_tokens_map, added_tokens, normalizer; with its
                            tokenizer in Python vocab.json and merges.txt as well
    faster-whisper 1.2      tokenizer, preprocessor_config
    OpenVINO GenAI 2026     config, generation_config, preprocessor_config

normalizer.json is a table of English spellings that nothing else holds: copied where there is one, never invented.
"""

import json
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.runtimes.modeling_sottovoce import KEYS
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError
from recipes.core.model_folder import PROCESSOR_FILES

REQUIRED = ("config.json", "generation_config.json", "tokenizer.json")
"""What nothing else in a checkpoint tells."""

_SIZES = ("num_mel_bins", "max_source_positions", "vocab_size", "decoder_layers", "decoder_attention_heads")
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")


def write_layout(source: Path, folder: Path) -> None:
    """Write `source`'s JSONs and TXTs into `folder`: its own as they are, missing ones derived.

    generation_config.json is copied too, with the keys it lacks. Raises UserError for a missing or broken file, and
    for files that contradict each other.
    """
    checkpoint = _Checkpoint(source)
    checkpoint.check()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *PROCESSOR_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        elif name in _DERIVED:
            write_json(folder / name, _DERIVED[name](checkpoint))
    config = _read(source / "config.json")
    if any(key in config for key in KEYS):
        # The graphs are whole; only weights in safetensors need a modelling file beside them.
        plain = {key: value for key, value in config.items() if key not in (*KEYS, "auto_map")}
        write_json(folder / "config.json", plain | {"architectures": ["WhisperForConditionalGeneration"]})
    if not (source / "merges.txt").is_file():
        (folder / "merges.txt").write_text("".join(f"{line}\n" for line in ("#version: 0.2", *checkpoint.merges)))
    if checkpoint.generation != (complete := {**_generation(checkpoint), **checkpoint.generation}):
        write_json(folder / "generation_config.json", complete)


def complete_onnx(folder: Path) -> None:
    """What loaders ask of the graphs under `folder/onnx`, once they are written; nothing where there are none.

    optimum takes config.json from the folder above, but generation_config.json only from beside the graphs, and makes
    one without prompts and suppressed tokens where it is missing. transformers.js fetches FILE_data only where
    config.json says so.
    """
    graphs = folder / "onnx"
    if not graphs.is_dir():
        return
    shutil.copyfile(folder / "generation_config.json", graphs / "generation_config.json")
    if large := sorted(file.name.removesuffix("_data") for file in graphs.glob("*.onnx_data")):
        config = _read(folder / "config.json")
        chunks = {"use_external_data_format": dict.fromkeys(large, 1)}
        config["transformers.js_config"] = {**config.get("transformers.js_config", {}), **chunks}
        write_json(folder / "config.json", config)


class _Checkpoint:
    """The parts of a checkpoint from which the others follow."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in REQUIRED:
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder}: expected a Whisper checkpoint with {name}, found none; "
                    "save model and processor there with save_pretrained"
                )
        self.config, self.generation, tokenizer = (_read(folder / name) for name in REQUIRED)
        if missing := [size for size in _SIZES if not isinstance(self.config.get(size), int)]:
            raise UserError(f"{folder}/config.json: expected the numbers of a Whisper, found no {', '.join(missing)}")
        self.added: list[dict[str, Any]] = sorted(tokenizer.get("added_tokens") or [], key=lambda token: token["id"])
        self.bpe: dict[str, Any] = tokenizer.get("model") or {}
        if self.bpe.get("type", "BPE") != "BPE" or "vocab" not in self.bpe:
            raise UserError(f"{folder}/tokenizer.json: expected a BPE vocabulary, found {self.bpe.get('type')}")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every token, by id."""
        ids = {**self.bpe["vocab"], **{token["content"]: token["id"] for token in self.added}}
        return dict(sorted(ids.items(), key=lambda item: item[1]))

    @property
    def merges(self) -> list[str]:
        """Pairs parted by a space; older tokenizers write them so, newer ones as lists."""
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in self.bpe.get("merges", [])]

    @cached_property
    def end(self) -> str:
        """The end of text, which Whisper also takes for beginning, padding and unknown."""
        number = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        return next((token for token, its_number in self.ids.items() if its_number == number), "<|endoftext|>")

    @cached_property
    def features(self) -> dict[str, dict[str, Any]]:
        """The feature extractor by the file that tells it."""
        found = {}
        if (path := self.folder / "preprocessor_config.json").is_file():
            found[path.name] = _read(path)
        if (path := self.folder / "processor_config.json").is_file() and "feature_extractor" in (inner := _read(path)):
            found[path.name] = inner["feature_extractor"]
        if not found:
            raise UserError(
                f"{self.folder}: expected preprocessor_config.json, or processor_config.json with a feature_extractor, "
                "found neither; save the processor there with save_pretrained"
            )
        return found

    def check(self) -> None:
        """Raise UserError where two files contradict each other; loaders would answer nonsense or crash later."""
        for name, features in self.features.items():
            self._agree(name, "feature_size", features.get("feature_size"), "num_mel_bins", self.config["num_mel_bins"])
            positions = self.config["max_source_positions"]
            frames = _window(features)["nb_max_frames"]
            self._agree(name, "nb_max_frames", frames, "2 * max_source_positions", 2 * positions)
        tokens, size = max(self.ids.values(), default=-1) + 1, self.config["vocab_size"]
        if tokens > size:
            raise UserError(
                f"{self.folder}/tokenizer.json: expected at most {size} tokens, the vocab_size of config.json, "
                f"found {tokens}; make them agree"
            )
        if (path := self.folder / "vocab.json").is_file():
            taken = {number: token for token, number in self.ids.items()}
            strange = [
                token
                for token, number in _read(path).items()
                if self.ids.get(token, number) != number or taken.get(number, token) != token
            ]
            if strange:
                raise UserError(
                    f"{path}: expected the ids of tokenizer.json, found {len(strange)} others, such as {strange[0]!r}; "
                    "delete the file, it is derived then"
                )
        layers = self.config["decoder_layers"]
        for layer, head in self.generation.get("alignment_heads") or []:
            if layer >= layers or head >= self.config["decoder_attention_heads"]:
                raise UserError(
                    f"{self.folder}/generation_config.json: expected alignment_heads within the {layers} decoder "
                    f"layers of config.json, found [{layer}, {head}]; drop it"
                )

    def _agree(self, name: str, key: str, found: object, wanted_key: str, wanted: object) -> None:
        if found != wanted:
            raise UserError(
                f"{self.folder}/{name}: expected {key} {wanted}, the {wanted_key} of config.json, found {found}; "
                "make them agree"
            )


def _window(features: dict[str, Any]) -> dict[str, int]:
    """The window in samples and frames, from the seconds where it is not told."""
    samples = features.get("n_samples", features.get("chunk_length", 30) * features.get("sampling_rate", 16_000))
    return {
        "n_samples": samples,
        "nb_max_frames": features.get("nb_max_frames", samples // features.get("hop_length", 160)),
    }


def _preprocessor(checkpoint: _Checkpoint) -> dict[str, Any]:
    (features,) = checkpoint.features.values()
    fixed = {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor"}
    return {**fixed, **_window(features), **features}


def _processor(checkpoint: _Checkpoint) -> dict[str, Any]:
    (features,) = checkpoint.features.values()
    return {"feature_extractor": features, "processor_class": "WhisperProcessor"}


def _tokenizer_config(checkpoint: _Checkpoint) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), checkpoint.end),
        "processor_class": "WhisperProcessor",
        "tokenizer_class": "WhisperTokenizer",
    }


def _special_tokens(checkpoint: _Checkpoint) -> dict[str, Any]:
    path = checkpoint.folder / "tokenizer_config.json"
    given = _read(path) if path.is_file() else {}
    roles = {role: given.get(role, checkpoint.end) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
    # Timestamps are added tokens, but not special: transformers decodes them.
    return {"additional_special_tokens": [token["content"] for token in checkpoint.added if token["special"]], **roles}


def _generation(checkpoint: _Checkpoint) -> dict[str, Any]:
    """What OpenVINO GenAI otherwise takes from the full vocabulary of multilingual models."""
    given, ids = checkpoint.generation, checkpoint.ids
    multilingual = given.get("is_multilingual", bool(given.get("lang_to_id")))
    derived: dict[str, Any] = {"is_multilingual": multilingual, "suppress_tokens": [], "begin_suppress_tokens": []}
    if multilingual:
        derived["lang_to_id"] = {token: number for token, number in ids.items() if _LANGUAGE.fullmatch(token)}
        tasks = {task: ids.get(f"<|{task}|>") for task in ("transcribe", "translate")}
        derived["task_to_id"] = {task: number for task, number in tasks.items() if number is not None}
    if (number := ids.get("<|notimestamps|>")) is not None:
        derived["no_timestamps_token_id"] = number
    return derived


_DERIVED: dict[str, Callable[[_Checkpoint], dict[str, Any]]] = {
    "preprocessor_config.json": _preprocessor,
    "processor_config.json": _processor,
    "tokenizer_config.json": _tokenizer_config,
    "vocab.json": lambda checkpoint: dict(sorted(checkpoint.bpe["vocab"].items(), key=lambda item: int(item[1]))),
    "added_tokens.json": lambda checkpoint: {token["content"]: token["id"] for token in checkpoint.added},
    "special_tokens_map.json": _special_tokens,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON file of a Whisper-format model, found {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
