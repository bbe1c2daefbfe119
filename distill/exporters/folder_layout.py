"""Write the JSON and TXT files of a model folder that other loaders read, copied from a checkpoint or derived from it.

transformers 5 saves only processor_config.json, tokenizer.json and tokenizer_config.json. The loaders read:

    transformers.js 4.3     config, generation_config, preprocessor_config, processor_config, tokenizer,
                            tokenizer_config
    optimum-onnx 0.1        config, onnx/generation_config; with the processor of transformers 4 preprocessor_config,
                            tokenizer, tokenizer_config, special_tokens_map, added_tokens, normalizer; with its
                            tokenizer in Python also vocab.json and merges.txt
    faster-whisper 1.2      tokenizer, preprocessor_config
    OpenVINO GenAI 2026     config, generation_config, preprocessor_config

normalizer.json is a table of English spellings that cannot be derived from the other files: it is copied if the
checkpoint has it, and left out otherwise.
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
"""Files that cannot be derived from the others."""

_SIZES = ("num_mel_bins", "max_source_positions", "vocab_size", "decoder_layers", "decoder_attention_heads")
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")


def write_layout(source: Path, folder: Path) -> None:
    """Write the JSON and TXT files of the checkpoint `source` into `folder`, and derive those that it lacks.

    Files are copied as they are, except that generation_config.json is completed and config.json is that of a plain
    Whisper. Raises UserError if a file is missing or broken, or if files contradict each other.
    """
    checkpoint = _Checkpoint(source)
    checkpoint.check_consistency()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *PROCESSOR_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        elif name in _DERIVED:
            write_json(folder / name, _DERIVED[name](checkpoint))
    config = _read_json(source / "config.json")
    if any(key in config for key in KEYS):
        # Exported graphs hold the whole computation; only safetensors weights need the modelling file that these name.
        plain = {key: value for key, value in config.items() if key not in (*KEYS, "auto_map")}
        write_json(folder / "config.json", plain | {"architectures": ["WhisperForConditionalGeneration"]})
    if not (source / "merges.txt").is_file():
        lines = ("#version: 0.2", *checkpoint.merges)
        (folder / "merges.txt").write_text("".join(f"{line}\n" for line in lines))
    generation = {**_generation_defaults(checkpoint), **checkpoint.generation}
    if generation != checkpoint.generation:
        write_json(folder / "generation_config.json", generation)


def complete_onnx(folder: Path) -> None:
    """Add what loaders read next to the graphs in `folder/onnx`, after these are written; nothing if there are none.

    optimum reads config.json from `folder`, but generation_config.json only from the graphs' own folder, and assumes
    one without prompts and suppressed tokens if it is missing. transformers.js fetches the external data FILE_data only
    if config.json says so.
    """
    graphs = folder / "onnx"
    if not graphs.is_dir():
        return
    shutil.copyfile(folder / "generation_config.json", graphs / "generation_config.json")
    if external := sorted(file.name.removesuffix("_data") for file in graphs.glob("*.onnx_data")):
        config = _read_json(folder / "config.json")
        chunks = {"use_external_data_format": dict.fromkeys(external, 1)}
        config["transformers.js_config"] = {**config.get("transformers.js_config", {}), **chunks}
        write_json(folder / "config.json", config)


class _Checkpoint:
    """The files of a checkpoint from which the others are derived."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in REQUIRED:
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder}: expected a Whisper checkpoint with {name}, found none; "
                    "save model and processor there with save_pretrained"
                )
        self.config, self.generation, tokenizer = (_read_json(folder / name) for name in REQUIRED)
        if missing := [size for size in _SIZES if not isinstance(self.config.get(size), int)]:
            raise UserError(f"{folder}/config.json: expected the sizes of a Whisper, found no {', '.join(missing)}")
        self.added_tokens: list[dict[str, Any]] = sorted(
            tokenizer.get("added_tokens") or [], key=lambda token: token["id"]
        )
        self.bpe: dict[str, Any] = tokenizer.get("model") or {}
        if self.bpe.get("type", "BPE") != "BPE" or "vocab" not in self.bpe:
            raise UserError(f"{folder}/tokenizer.json: expected a BPE vocabulary, found {self.bpe.get('type')}")

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """Id of every token, in the order of the ids."""
        ids = {**self.bpe["vocab"], **{token["content"]: token["id"] for token in self.added_tokens}}
        return dict(sorted(ids.items(), key=lambda item: item[1]))

    @property
    def merges(self) -> list[str]:
        """Merge rules as two tokens separated by a space. Older tokenizers have them so, newer ones as lists."""
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in self.bpe.get("merges", [])]

    @cached_property
    def end_of_text(self) -> str:
        """The end-of-text token, which Whisper also uses as beginning, padding and unknown token."""
        end_id = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        return next((token for token, id_ in self.token_ids.items() if id_ == end_id), "<|endoftext|>")

    @cached_property
    def feature_extractors(self) -> dict[str, dict[str, Any]]:
        """Settings of the feature extractor, by the name of each file that holds them."""
        settings = {}
        if (path := self.folder / "preprocessor_config.json").is_file():
            settings[path.name] = _read_json(path)
        path = self.folder / "processor_config.json"
        if path.is_file() and "feature_extractor" in (processor := _read_json(path)):
            settings[path.name] = processor["feature_extractor"]
        if not settings:
            raise UserError(
                f"{self.folder}: expected preprocessor_config.json, or processor_config.json with a feature_extractor, "
                "found neither; save the processor there with save_pretrained"
            )
        return settings

    def check_consistency(self) -> None:
        """Raise UserError if two files contradict each other: loaders would crash or write nonsense later."""
        config, positions = self.config, self.config["max_source_positions"]
        for name, settings in self.feature_extractors.items():
            bins, frames = settings.get("feature_size"), _window_sizes(settings)["nb_max_frames"]
            self._require_equal(name, "feature_size", bins, "num_mel_bins", config["num_mel_bins"])
            self._require_equal(name, "nb_max_frames", frames, "2 * max_source_positions", 2 * positions)
        tokens, size = max(self.token_ids.values(), default=-1) + 1, config["vocab_size"]
        if tokens > size:
            raise UserError(
                f"{self.folder}/tokenizer.json: expected at most {size} tokens, the vocab_size of config.json, "
                f"found {tokens}; make them agree"
            )
        if (path := self.folder / "vocab.json").is_file():
            tokens_by_id = {id_: token for token, id_ in self.token_ids.items()}
            different = [
                token
                for token, id_ in _read_json(path).items()
                if self.token_ids.get(token, id_) != id_ or tokens_by_id.get(id_, token) != token
            ]
            if different:
                raise UserError(
                    f"{path}: expected the ids of tokenizer.json, found {len(different)} others, such as "
                    f"{different[0]!r}; delete the file, it is then derived"
                )
        for layer, head in self.generation.get("alignment_heads") or []:
            if layer >= config["decoder_layers"] or head >= config["decoder_attention_heads"]:
                raise UserError(
                    f"{self.folder}/generation_config.json: expected alignment_heads within the "
                    f"{config['decoder_layers']} decoder layers of config.json, found [{layer}, {head}]; remove it"
                )

    def _require_equal(self, file: str, key: str, value: object, config_key: str, expected: object) -> None:
        if value != expected:
            raise UserError(
                f"{self.folder}/{file}: expected {key} {expected}, the {config_key} of config.json, found {value}; "
                "make them agree"
            )


def _window_sizes(settings: dict[str, Any]) -> dict[str, int]:
    """Return the window of a feature extractor in samples and frames, computed from its seconds if not given."""
    samples = settings.get("n_samples", settings.get("chunk_length", 30) * settings.get("sampling_rate", 16_000))
    frames = settings.get("nb_max_frames", samples // settings.get("hop_length", 160))
    return {"n_samples": samples, "nb_max_frames": frames}


def _preprocessor(checkpoint: _Checkpoint) -> dict[str, Any]:
    (settings,) = checkpoint.feature_extractors.values()
    classes = {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor"}
    return {**classes, **_window_sizes(settings), **settings}


def _processor(checkpoint: _Checkpoint) -> dict[str, Any]:
    (settings,) = checkpoint.feature_extractors.values()
    return {"feature_extractor": settings, "processor_class": "WhisperProcessor"}


def _tokenizer_config(checkpoint: _Checkpoint) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), checkpoint.end_of_text),
        "processor_class": "WhisperProcessor",
        "tokenizer_class": "WhisperTokenizer",
    }


def _special_tokens(checkpoint: _Checkpoint) -> dict[str, Any]:
    path = checkpoint.folder / "tokenizer_config.json"
    settings = _read_json(path) if path.is_file() else {}
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    roles = {name: settings.get(name, checkpoint.end_of_text) for name in names}
    # Timestamps are added tokens but not special ones: transformers decodes them to text.
    special = [token["content"] for token in checkpoint.added_tokens if token["special"]]
    return {"additional_special_tokens": special, **roles}


def _generation_defaults(checkpoint: _Checkpoint) -> dict[str, Any]:
    """Return values for keys that OpenVINO GenAI otherwise assumes to be those of the full multilingual vocabulary."""
    settings, ids = checkpoint.generation, checkpoint.token_ids
    multilingual = settings.get("is_multilingual", bool(settings.get("lang_to_id")))
    defaults: dict[str, Any] = {"is_multilingual": multilingual, "suppress_tokens": [], "begin_suppress_tokens": []}
    if multilingual:
        defaults["lang_to_id"] = {token: id_ for token, id_ in ids.items() if _LANGUAGE.fullmatch(token)}
        tasks = {task: ids.get(f"<|{task}|>") for task in ("transcribe", "translate")}
        defaults["task_to_id"] = {task: id_ for task, id_ in tasks.items() if id_ is not None}
    if (id_ := ids.get("<|notimestamps|>")) is not None:
        defaults["no_timestamps_token_id"] = id_
    return defaults


_DERIVED: dict[str, Callable[[_Checkpoint], dict[str, Any]]] = {
    "preprocessor_config.json": _preprocessor,
    "processor_config.json": _processor,
    "tokenizer_config.json": _tokenizer_config,
    "vocab.json": lambda checkpoint: dict(sorted(checkpoint.bpe["vocab"].items(), key=lambda item: int(item[1]))),
    "added_tokens.json": lambda checkpoint: {token["content"]: token["id"] for token in checkpoint.added_tokens},
    "special_tokens_map.json": _special_tokens,
}
"""Computes the contents of a file that a checkpoint lacks, by its name."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON file of a Whisper-format model, found {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
