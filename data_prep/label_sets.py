"""Finished label sets: taken from a folder or the Hub instead of running the teacher, and pushed there.

    python -m data_prep.label_sets recipes/NAME/recipe.yaml owner/name     push runs/NAME/labels

Labels go by utterance id. Audio does not travel: its references are those of the corpus that takes the set.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from data_prep.label_store import Label, merge_parts, read_labels, shards, write_part
from eval.utterances import Utterance
from recipes.errors import UserError, run_main
from recipes.freshness import read_record
from recipes.hub import REFUSED, one_refusal, own_repository
from recipes.schema import load

_CARD = """---
configs:
  - config_name: default
    data_files: labels-*.parquet
---
Whisper pseudo-labels, one row an utterance: {rows} rows, {hours} hours. Made with sottovoce by {teacher};
the columns are described in its data_prep/label_store.py, schema version 2.
"""


def copy_label_set(source: str, utterances: Sequence[Utterance], folder: Path) -> None:
    """The labels of these utterances from a folder or Hub id into `folder`.

    Raises UserError when the set is not there or lacks an utterance.
    """
    place = Path(source) if Path(source).is_dir() else _from_hub(source)
    if not shards(place):
        raise UserError(
            f"labels.source: expected labels-NNNNN.parquet in {place}, found none; give a finished label set"
        )
    known = {label.id: label for label in read_labels(place, distributions=True)}
    if missing := [item.id for item in utterances if item.id not in known]:
        raise UserError(
            f"labels.source {source}: expected a label for each of {len(utterances)} utterances, found none for "
            f"{len(missing)}, such as {missing[0]}; use the corpus that the set was made from"
        )
    labels = [_moved(known[item.id], item) for item in utterances]
    write_part(folder, 0, labels)
    merge_parts(folder, len(labels), 4096)


def _moved(label: Label, item: Utterance) -> Label:
    return replace(
        label, split=item.split, source=item.source, audio=item.audio, seconds=item.seconds, parts=item.parts,
        part_seconds=item.part_seconds, speaker=item.speaker, reference=item.text,
    )  # fmt: skip


def _from_hub(source: str) -> Path:
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=["labels-*.parquet"]))
    except REFUSED as error:
        raise UserError(
            f"labels.source {source}: no such folder, and the Hub did not give it ({type(error).__name__}); "
            "correct the path, or check the id, the network and the access token"
        ) from error


def main() -> None:
    """Push a finished label set as a Hub data set."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.label_sets", description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("repository", help="Hub id, owner/name")
    parser.add_argument("--public", action="store_true", help="for all to see; private otherwise")
    given = parser.parse_args()
    recipe = load(given.recipe)
    folder = recipe.root / "labels"
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: expected finished labels, found none; run `sottovoce run {given.recipe}` first")
    card = _CARD.format(
        rows=record["counts"]["utterances"], hours=record["metrics"]["audio_hours"], teacher=recipe.teacher.model
    )
    api = HfApi()
    with one_refusal(f"push to {given.repository}"):
        own_repository(api, given.repository, "dataset", private=not given.public)
        api.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=given.repository, repo_type="dataset"
        )
        api.upload_folder(
            folder_path=folder, repo_id=given.repository, repo_type="dataset", allow_patterns=["labels-*.parquet"]
        )
    print(f"pushed {folder} to https://huggingface.co/datasets/{given.repository}")


if __name__ == "__main__":
    run_main(main)
