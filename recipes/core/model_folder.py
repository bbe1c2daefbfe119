"""Model folders in Whisper format: find them locally or download them from the Hub, and check their files."""

from pathlib import Path

from recipes.core.errors import UserError

PROCESSOR_FILES = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "normalizer.json",
)  # fmt: skip
"""Files of a model folder in addition to configuration and weights. Each is read by at least one other loader."""

_REQUIRED = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")


def resolve_model_folder(model: str, key: str = "teacher.model") -> Path:
    """Return the folder of a model given as a local path or as a Hub id (`owner/name`), which is downloaded.

    Raises UserError, with the recipe key `key`, if the model is neither or if a file of the Whisper format is missing.
    """
    folder = local_model_folder(model, key)
    if folder is None:
        folder = _download(model, key)
        check_model_folder(folder, key)
    return folder


def local_model_folder(model: str, key: str = "teacher.model") -> Path | None:
    """Return the local folder of a model after checking its files, or None if `model` is a Hub id."""
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
    """Raise UserError if the folder lacks the configuration, the tokenizer or the safetensors weights."""
    for name in _REQUIRED:
        if not (folder / name).is_file():
            raise UserError(
                f"{key} {folder}: expected a Whisper-format folder with {name}, found none; "
                "save the model and its processor there with save_pretrained"
            )
    if not any(folder.glob("model*.safetensors")):
        raise UserError(f"{key} {folder}: expected model.safetensors, found none; save the weights as safetensors")


def _download(model: str, key: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "model*.safetensors"]))
    except (OSError, ValueError) as error:  # errors of the Hub are OSErrors; a malformed id raises ValueError
        raise UserError(
            f"{key} {model}: no such local folder, and the download from the Hub failed ({type(error).__name__}); "
            "correct the path, or check the id, the network and the access token"
        ) from error
