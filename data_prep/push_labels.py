"""TODO: data_prep.push_labels."""

import argparse
from pathlib import Path

from huggingface_hub import HfApi

from recipes.core.errors import UserError, run_main
from recipes.core.hub import ensure_repository, hub_errors_as_user_errors
from recipes.engine.freshness import read_record
from recipes.schema.recipe import load_recipe

_CARD = """---
configs:
  - config_name: default
    data_files: labels-*.parquet
---
Whisper pseudo-labels, one row an utterance: {rows} rows, {hours} hours. Made with sottovoce by {teacher};
the columns are described in its data_prep/labels/label_store.py, schema version 2.
"""


def main() -> None:
    """Push a finished label set as a Hub data set."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.push_labels", description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("repository", help="Hub id, owner/name")
    parser.add_argument("--public", action="store_true", help="for all to see; private otherwise")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    folder = recipe.root / "labels"
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: expected finished labels, found none; run `sottovoce run {given.recipe}` first")
    card = _CARD.format(
        rows=record["counts"]["utterances"], hours=record["metrics"]["audio_hours"], teacher=recipe.teacher.model
    )
    api = HfApi()
    with hub_errors_as_user_errors(f"push to {given.repository}"):
        ensure_repository(api, given.repository, "dataset", private=not given.public)
        api.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=given.repository, repo_type="dataset"
        )
        api.upload_folder(
            folder_path=folder, repo_id=given.repository, repo_type="dataset", allow_patterns=["labels-*.parquet"]
        )
    print(f"pushed {folder} to https://huggingface.co/datasets/{given.repository}")


if __name__ == "__main__":
    run_main(main)
