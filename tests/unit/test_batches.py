from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_prep.label_store import Label, finished_parts, merge_parts, read_labels, write_part
from distill.batches import IGNORE, Collate, step_rows, training_batches


def label(name: str, tokens: list[int], audio: str = "none") -> Label:
    return Label(name, "train", audio, 1.0, None, "text", tokens, 2, -0.1, None, True, None)


LABELS = [label(str(number), [1, 2, 3, 9]) for number in range(37)]


@given(batch_size=st.integers(1, 50), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_sees_every_row_once(batch_size: int, seed: int, epochs: int) -> None:
    total = epochs * len(LABELS)
    seen = [row.id for step in range(-(-total // batch_size)) for row in step_rows(LABELS, step, batch_size, seed)]
    for epoch in range(epochs):
        part = seen[epoch * len(LABELS) : (epoch + 1) * len(LABELS)]
        assert sorted(part) == sorted(row.id for row in LABELS)
    if epochs > 1:
        assert seen[: len(LABELS)] != seen[len(LABELS) : 2 * len(LABELS)]


@pytest.fixture
def spoken(tmp_path: Path) -> list[Label]:
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.5), 16_000)
    return [label(str(number), [1, 2, *range(3, 3 + number), 9], str(tmp_path / "a.wav")) for number in range(1, 12)]


def test_processes_share_the_rows_of_one(spoken: list[Label]) -> None:
    collate = Collate(1600, 0)

    def rows(rank: int, world: int) -> list[list[str]]:
        batches = training_batches(
            spoken,
            collate,
            first_step=3,
            last_step=6,
            batch_size=4,
            seed=1,
            rank=rank,
            world=world,
            workers=0,
        )
        return [batch.ids for batch in batches]

    whole = rows(0, 1)
    assert [sorted(first + second) for first, second in zip(rows(0, 2), rows(1, 2), strict=True)] == [
        sorted(step) for step in whole
    ]


def test_prompt_and_padding_are_seen_but_not_predicted(spoken: list[Label]) -> None:
    batch = Collate(1600, 0)([spoken[0], spoken[2]])
    assert batch.inputs_BL.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.labels_BL.tolist() == [[IGNORE, 3, 9, IGNORE, IGNORE], [IGNORE, 3, 4, 5, 9]]
    assert batch.samples_BN.shape == (2, 1600)
    assert float(batch.samples_BN[0, :800].min()) > 0.4
    assert float(batch.samples_BN[0, 800:].abs().max()) == 0


def test_parts_become_shards_in_corpus_order(tmp_path: Path) -> None:
    write_part(tmp_path, 1, LABELS[20:])
    (tmp_path / "parts" / ".part-0000000.parquet.1").write_bytes(b"half")
    assert finished_parts(tmp_path) == {1}
    write_part(tmp_path, 0, LABELS[:20])
    merge_parts(tmp_path, [row.id for row in LABELS], shard_rows=10)
    assert read_labels(tmp_path) == LABELS
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"labels-{number:05d}.parquet" for number in range(4)]


def test_shards_are_readable_by_datasets(tmp_path: Path) -> None:
    import datasets

    write_part(tmp_path, 0, LABELS)
    merge_parts(tmp_path, [row.id for row in LABELS], shard_rows=100)
    table = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "labels-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert table[3]["tokens"] == [1, 2, 3, 9]
