"""Command: push a finished label set to the Hugging Face Hub as a data set.

    python -m data_prep.push_labels recipes/NAME/recipe.yaml owner/name

The data set holds the label shards and a card, but no audio. Another recipe uses it with `labels.source: owner/name`.
"""

import argparse
from pathlib import Path

from huggingface_hub import HfApi

from recipes.core.errors import UserError, run_main
from recipes.core.hub import ensure_repository, hub_errors_as_user_errors
from recipes.engine.stage_record import read_record
from recipes.schema.recipe import load_recipe

_CARD = """---
configs:
  - config_name: default
    data_files: labels-*.parquet
---
Whisper pseudo-labels with one row per utterance: {rows} rows, {hours} hours of audio. The teacher is {teacher}.
Made with sottovoce; its data_prep/labels/label_store.py describes the columns (schema version 2).
"""


def main() -> None:
    """Push a finished label set to the Hub as a data set."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.push_labels", description=main.__doc__)
    parser.add_argument("recipe", type=Path, help="recipe file of the run")
    parser.add_argument("repository", help="Hub id, owner/name")
    parser.add_argument("--public", action="store_true", help="make the repository public; it is private otherwise")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    folder = recipe.root / "labels"
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: expected finished labels, found none; run `sottovoce run {args.recipe}` first")
    card = _CARD.format(
        rows=record["counts"]["utterances"], hours=record["metrics"]["audio_hours"], teacher=recipe.teacher.model
    )
    api = HfApi()
    with hub_errors_as_user_errors(f"push to {args.repository}"):
        ensure_repository(api, args.repository, "dataset", private=not args.public)
        api.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=args.repository, repo_type="dataset"
        )
        api.upload_folder(
            folder_path=folder, repo_id=args.repository, repo_type="dataset", allow_patterns=["labels-*.parquet"]
        )
    print(f"pushed {folder} to https://huggingface.co/datasets/{args.repository}")


if __name__ == "__main__":
    run_main(main)
