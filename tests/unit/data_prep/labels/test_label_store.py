"""Tests of the label store: parts, shards, stored distributions and label sets from elsewhere."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.labels.label_sets import copy_label_set
from data_prep.labels.label_store import (
    SCHEMA_VERSION,
    Label,
    TokenDistribution,
    finished_parts,
    label_schema,
    merge_parts,
    read_labels,
    shards_complete,
    write_part,
)
from recipes.core.errors import UserError
from tests.unit.labels import decoding, label, utterance

STORED = TokenDistribution(
    np.array([[5, 2], [9, 1]], np.int32), np.array([[3.5, -1.25], [7.0, 0.1]], np.float32),
    np.array([0.5, -np.inf], np.float32),
)  # fmt: skip
LABELS = [
    label(f"{number:02d}", plain=decoding([1, 2, 3, 9], distribution=STORED), timed=decoding([1, 7, 9], 1), speaker="x")
    if number % 3 else label(f"{number:02d}", error="no such file")
    for number in range(37)
]  # fmt: skip


def store(folder: Path, labels: list[Label] = LABELS, shard_rows: int = 10) -> None:
    write_part(folder, 1, labels[20:])
    write_part(folder, 0, labels[:20])
    merge_parts(folder, len(labels), shard_rows)


def test_parts_are_merged_in_order_and_leftovers_are_removed(tmp_path: Path) -> None:
    write_part(tmp_path, 1, LABELS[20:])
    (tmp_path / "parts" / ".part-0000000.parquet.1").write_bytes(b"half")
    assert finished_parts(tmp_path) == {1}
    assert not shards_complete(tmp_path, len(LABELS))
    write_part(tmp_path, 0, LABELS[:20])
    merge_parts(tmp_path, len(LABELS), shard_rows=10)
    assert shards_complete(tmp_path, len(LABELS))
    assert read_labels(tmp_path) == LABELS
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"labels-{number:05d}.parquet" for number in range(4)]


def test_an_interrupted_merge_is_completed(tmp_path: Path) -> None:
    write_part(tmp_path, 0, LABELS[:20])
    write_part(tmp_path, 1, LABELS[20:])
    (tmp_path / "labels-00000.parquet").write_bytes((tmp_path / "parts" / "part-0000000.parquet").read_bytes())
    assert not shards_complete(tmp_path, len(LABELS))
    merge_parts(tmp_path, len(LABELS), shard_rows=30)
    assert read_labels(tmp_path) == LABELS
    (tmp_path / "parts").mkdir()
    merge_parts(tmp_path, len(LABELS), shard_rows=30)
    assert read_labels(tmp_path) == LABELS, "after a kill while the parts were being removed"


@pytest.mark.parametrize("wrong", ["twice", "missing"])
def test_duplicate_and_missing_labels_stop_the_merge(tmp_path: Path, wrong: str) -> None:
    write_part(tmp_path, 0, LABELS[:20])
    write_part(tmp_path, 1, LABELS[19:] if wrong == "twice" else LABELS[21:])
    with pytest.raises(AssertionError):
        merge_parts(tmp_path, len(LABELS), shard_rows=10)


def test_distributions_are_read_as_they_were_written(tmp_path: Path) -> None:
    store(tmp_path)
    stored = read_labels(tmp_path, distributions=True)[1].plain.distribution
    assert stored is not None
    for name in ("ids_NK", "logits_NK", "tail_N"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(STORED, name))
    assert read_labels(tmp_path)[1].plain.distribution is None


def test_shards_are_readable_by_datasets_as_text(tmp_path: Path) -> None:
    import datasets

    store(tmp_path)
    files = str(tmp_path / "labels-*.parquet")
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == len(LABELS)
    # Readers of the shards expect readable text here, not token ids.
    assert table[1]["plain"]["text"] == "text"
    assert table[1]["plain"]["tokens"] == [1, 2, 3, 9]
    assert label_schema().metadata[b"sottovoce.label_schema"] == str(SCHEMA_VERSION).encode()


def test_a_label_set_is_copied_by_utterance_id(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    store(tmp_path / "from")
    wanted = [utterance(row.id, audio=[f"here/{row.id}"], source="mine") for row in reversed(LABELS[:9])]
    copy_label_set(str(tmp_path / "from"), wanted, tmp_path / "to")
    copied = read_labels(tmp_path / "to")
    assert [row.id for row in copied] == [item.id for item in wanted]
    assert copied[0].audio == ["here/08"]
    assert copied[0].source == "mine"
    assert copied[0].plain == LABELS[8].plain
    with pytest.raises(UserError, match="such as nowhere"):
        copy_label_set(str(tmp_path / "from"), [utterance("nowhere")], tmp_path / "to")
    with pytest.raises(UserError, match=r"expected labels-NNNNN\.parquet"):
        copy_label_set(str(tmp_path), wanted, tmp_path / "to")
