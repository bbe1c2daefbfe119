"""Finished label sets: taken from a folder or the Hub instead of running the teacher, and pushed there.

    python -m data_prep.push_labels recipes/NAME/recipe.yaml owner/name     push runs/NAME/labels

Labels go by utterance id. Audio does not travel: its references are those of the corpus that takes the set.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import snapshot_download

from data_prep.labels.label_store import Label, merge_parts, read_labels, shard_files, write_part
from eval.audio.utterances import Utterance
from recipes.core.errors import UserError
from recipes.core.hub import HUB_ERRORS


def copy_label_set(source: str, utterances: Sequence[Utterance], folder: Path) -> None:
    """The labels of these utterances from a folder or Hub id into `folder`.

    Raises UserError when the set is not there or lacks an utterance.
    """
    place = Path(source) if Path(source).is_dir() else _from_hub(source)
    if not shard_files(place):
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
    except HUB_ERRORS as error:
        raise UserError(
            f"labels.source {source}: no such folder, and the Hub did not give it ({type(error).__name__}); "
            "correct the path, or check the id, the network and the access token"
        ) from error
