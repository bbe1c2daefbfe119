"""Tests of listing the recordings of folders, Parquet files and data sets, and of copying embedded audio."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from data_prep.sources import embedded_rows
from data_prep.sources.discovery import SourceRecording, check_distinct_names, find_recordings
from eval.audio.recordings import read_audio
from recipes.core.errors import UserError
from recipes.schema.corpus_section import AudioSource

RNG = np.random.default_rng(0)


def encoded(seconds: float, suffix: str = "flac", rate: int = 16_000) -> tuple[np.ndarray, bytes]:
    samples = (RNG.standard_normal(int(seconds * rate)) * 0.1).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=suffix.upper())
    return samples, buffer.getvalue()


def list_source(source: AudioSource, folder: Path) -> list[SourceRecording]:
    return list(find_recordings(source, folder))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        {
            "audio": {"bytes": encoded(0.1 + number / 100)[1], "path": None},
            "sentence": f"text {number}",
            "who": "x" if number else None,
        }
        for number in range(7)
    ]


@pytest.fixture
def parquet(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train-00000.parquet", row_group_size=2)
    return tmp_path / "data"


def columns(**extra: Any) -> dict[str, Any]:
    return {"columns": {"text": "sentence", "speaker": "who"}, **extra}


@pytest.mark.parametrize("kind", ["parquet", "hub", "hub not streamed"])
def test_audio_embedded_in_rows_is_copied_without_change(
    parquet: Path, rows: list[dict[str, Any]], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_rows, "ROWS", 3)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    kind_setting = (
        {"parquet": parquet} if kind == "parquet" else {"hub": {"dataset": str(parquet), "streaming": kind == "hub"}}
    )
    items = list_source(AudioSource(**columns(name="d", **kind_setting)), tmp_path)
    assert [item.text for item in items] == [row["sentence"] for row in rows]
    assert [item.speaker for item in items] == [None] + ["x"] * 6
    assert {item.split for item in items} == {"train"}
    for item, row in zip(items, rows, strict=True):
        np.testing.assert_array_equal(
            read_audio(item.audio), soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0]
        )
    with tarfile.open(tmp_path / "audio" / "d" / "00000.tar") as tar:
        assert [member.name for member in tar] == ["00000000.flac", "00000001.flac", "00000002.flac"]


def test_an_interrupted_copy_continues_after_the_last_complete_shard(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_rows, "ROWS", 2)
    source = AudioSource(**columns(parquet=parquet, name="d"))
    complete = list_source(source, tmp_path / "complete")
    killed = tmp_path / "killed" / "audio" / "d"
    list_source(source, tmp_path / "killed")
    for leftover in ("00002.jsonl", "00003.jsonl", "00003.tar"):
        (killed / leftover).unlink()
    (killed / ".00003.tar.77").write_bytes(b"half")
    before = (killed / "00001.tar").stat().st_mtime_ns
    again = list_source(source, tmp_path / "killed")
    assert (killed / "00001.tar").stat().st_mtime_ns == before, "complete shards are not copied again"
    assert [item.text for item in again] == [item.text for item in complete]
    for first, second in zip(complete, again, strict=True):
        np.testing.assert_array_equal(read_audio(first.audio), read_audio(second.audio))


def test_rows_without_audio_are_listed_so_that_they_can_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"audio": {"bytes": encoded(0.2)[1], "path": ""}}, {"audio": None}]), path)
    assert [bool(item.audio) for item in list_source(AudioSource(parquet=path), tmp_path)] == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"audio": "sound"}}, r"columns\.audio: expected a column sound, found audio, sentence, who"),
        ({"columns": {"text": "words"}}, r"columns\.text: expected a column words"),
        ({"parquet": Path("nowhere")}, "expected Parquet files at nowhere"),
        ({"parquet": None, "hub": {"dataset": "./nowhere"}}, "datasets cannot read it"),
    ],
)
def test_a_wrong_name_in_the_recipe_is_reported(
    parquet: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        list_source(AudioSource(**{"parquet": parquet, **change}), tmp_path)


def test_two_sources_with_the_same_name_are_refused(tmp_path: Path) -> None:
    twice = [AudioSource(audio=tmp_path / "a"), AudioSource(parquet=tmp_path / "b" / "a")]
    with pytest.raises(UserError, match="found two sources called a"):
        check_distinct_names(twice)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_audiofolder_has_its_own_columns_and_split(tmp_path: Path, form: str) -> None:
    (tmp_path / "naïve é.flac").write_bytes(encoded(0.2)[1])
    line = {"file_name": "naïve é.flac", "words": "said", "lang": "fr"}
    text = json.dumps(line) + "\n" if form == "jsonl" else ",".join(line) + "\n" + ",".join(line.values()) + "\n"
    (tmp_path / f"metadata.{form}").write_text(text, encoding="utf-8")
    source = AudioSource(audiofolder=tmp_path, split="test", columns={"text": "words", "language": "lang"})
    (item,) = list_source(source, tmp_path)
    assert (item.split, item.text, item.speaker, item.language) == ("test", "said", None, "fr")
    assert len(read_audio(item.audio)) == 3200
