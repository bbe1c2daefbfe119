"""Reuse a finished label set from a folder or the Hub instead of running the teacher.

Labels are matched by utterance id. A label set contains no audio: the references to the audio are those of the corpus
that uses the set. `data_prep.push_labels` pushes a label set to the Hub.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import snapshot_download

from data_prep.labels.label_store import Label, merge_parts, read_labels, shard_files, write_part
from eval.audio.utterances import Utterance
from recipes.core.errors import UserError
from recipes.core.hub import HUB_ERRORS

_SHARD_ROWS = 4096


def copy_label_set(source: str, utterances: Sequence[Utterance], folder: Path) -> None:
    """Write the labels of these utterances from a finished label set to shards in `folder`.

    Args:
        source: Folder of the label set, or its Hub id.
        utterances: The utterances that need a label, in the order of the new set.
        folder: Where to write the shards.

    Raises UserError when the label set does not exist or lacks one of the utterances.
    """
    label_set = Path(source) if Path(source).is_dir() else _download(source)
    if not shard_files(label_set):
        raise UserError(
            f"labels.source: expected labels-NNNNN.parquet in {label_set}, found none; give a finished label set"
        )
    label_by_id = {label.id: label for label in read_labels(label_set, distributions=True)}
    if missing := [utterance.id for utterance in utterances if utterance.id not in label_by_id]:
        raise UserError(
            f"labels.source {source}: expected a label for each of {len(utterances)} utterances, found none for "
            f"{len(missing)}, such as {missing[0]}; use the corpus that the set was made from"
        )
    labels = [_adopt(label_by_id[utterance.id], utterance) for utterance in utterances]
    write_part(folder, 0, labels)
    merge_parts(folder, len(labels), _SHARD_ROWS)


def _adopt(label: Label, utterance: Utterance) -> Label:
    """Return the label with everything but the teacher's output taken from this corpus's utterance."""
    return replace(
        label, split=utterance.split, source=utterance.source, audio=utterance.audio, seconds=utterance.seconds,
        parts=utterance.parts, part_seconds=utterance.part_seconds, speaker=utterance.speaker,
        reference=utterance.text,
    )  # fmt: skip


def _download(source: str) -> Path:
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=["labels-*.parquet"]))
    except HUB_ERRORS as error:
        raise UserError(
            f"labels.source {source}: there is no such folder, and it could not be downloaded from the Hub "
            f"({type(error).__name__}); correct the path, or check the id, the network and the access token"
        ) from error
