"""Model folders in Whisper format: found locally or fetched from the Hub, and checked before use."""

from pathlib import Path

from recipes.core.errors import UserError

PROCESSOR_FILES = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "normalizer.json",
)  # fmt: skip
"""What a model folder carries beside config and weights; other loaders read one or another of these."""

_REQUIRED = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")


def resolve_model_folder(model: str, key: str = "teacher.model") -> Path:
    """The folder of a model given as a local path or as a Hub id (`owner/name`, then the network is used).

    Raises UserError, naming the recipe's key, when it is neither, or lacks a file of the Whisper format.
    """
    folder = local_model_folder(model, key)
    if folder is None:
        folder = _from_hub(model, key)
        check_model_folder(folder, key)
    return folder


def local_model_folder(model: str, key: str = "teacher.model") -> Path | None:
    """The checked local folder, or None for a Hub id."""
    folder = Path(model)
    if folder.is_dir():
        check_model_folder(folder, key)
        return folder
    parts = model.split("/")
    if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") and not folder.parent.is_dir():
        return None
    raise UserError(
        f"{key}: expected a folder at {folder} ({folder.absolute()}) or a Hub id (owner/name), "
        "found neither; correct the path"
    )


def check_model_folder(folder: Path, key: str) -> None:
    """Raise UserError unless the folder has configuration, tokenizer and safetensors weights."""
    for name in _REQUIRED:
        if not (folder / name).is_file():
            raise UserError(
                f"{key} {folder}: expected a Whisper-format folder with {name}, found none; "
                "save model and processor there with save_pretrained"
            )
    if not any(folder.glob("model*.safetensors")):
        raise UserError(f"{key} {folder}: expected model.safetensors, found none; save the weights as safetensors")


def _from_hub(model: str, key: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "model*.safetensors"]))
    except (OSError, ValueError) as error:  # the Hub's errors are OSErrors, a malformed id a ValueError
        raise UserError(
            f"{key} {model}: no such local folder, and the Hub did not give it ({type(error).__name__}); "
            "correct the path, or check the id, the network and the access token"
        ) from error
