"""What each kind of source names, before any audio is decoded."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.sources.embedded_rows import copy_embedded_audio
from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import AUDIO_SUFFIXES
from recipes.core.errors import UserError
from recipes.schema.corpus_section import AudioSource, ColumnNames, CorpusSection

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class SourceRecording:
    """A recording that a source names."""

    split: str
    name: str
    """Within the source; part of the id."""
    audio: str
    """Reference (`eval.audio`); empty where the row has none."""
    text: str | None = None
    speaker: str | None = None
    language: str | None = None


def check_distinct_names(corpus: CorpusSection) -> list[AudioSource]:
    """The sources; UserError when two have one name, since ids and test sets would mix."""
    twice = [label for label, count in Counter(source.label for source in corpus.sources).items() if count > 1]
    if twice:
        raise UserError(f"corpus.sources: two sources are called {twice[0]}; set `name` on one of them")
    return corpus.sources


def find_recordings(source: AudioSource, corpus: CorpusSection, folder: Path, seed: int) -> Iterator[SourceRecording]:
    """The recordings of one source. Synthetic ones are spoken first, embedded ones copied, into `folder`/audio.

    Raises UserError for a missing or empty source.
    """
    if source.synthesis is not None:
        yield from _synthesized(source, corpus, folder, seed)
    elif source.hub is not None or source.parquet is not None:
        yield from _embedded(source, folder)
    else:
        yield from _in_folders(source)


def _in_folders(source: AudioSource) -> Iterator[SourceRecording]:
    place, key = (source.audiofolder, "audiofolder") if source.audiofolder else (source.audio, "audio")
    assert place is not None
    if not place.is_dir():
        raise UserError(
            f"corpus.sources.{key}: expected a folder at {place} ({place.absolute()}), found none; correct the path"
        )
    named = {_SPLITS[child.name]: child for child in sorted(place.iterdir()) if child.name in _SPLITS}
    some = False
    for split, child in (named or {"train": place}).items():
        listing = read_metadata(child, "corpus.sources.audiofolder") if source.audiofolder else _bare(child)
        for file_name, row in listing:
            some = True
            use = split if named else source.split or split
            yield SourceRecording(
                use, f"{split}/{file_name}", str(child / file_name), *describe_row(row, source.columns)
            )
    if not some:
        raise UserError(f"corpus.sources.{key}: expected audio under {place}, found none; check the folder")


def describe_row(row: dict[str, Any], columns: ColumnNames) -> tuple[str | None, str | None, str | None]:
    """Text, speaker and language of a metadata row; UserError for a column that the recipe names and is not there."""
    values = []
    for default in ("text", "speaker", "language"):
        column = getattr(columns, default)
        if column is not None and column not in row:
            raise UserError(f"corpus.sources.columns.{default}: expected a column {column}, found {', '.join(row)}")
        value = row.get(column or default)
        values.append(str(value) if value not in (None, "") else None)
    return values[0], values[1], values[2]


def _bare(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir():  # a broken link too, to be named
            yield path.relative_to(folder).as_posix(), {}


def _embedded(source: AudioSource, folder: Path) -> Iterator[SourceRecording]:
    split = source.split or _SPLITS.get(source.hub.split.split("[")[0].split(".")[0] if source.hub else "", "train")
    some = False
    for row in copy_embedded_audio(source, folder / "audio" / source.label):
        some = True
        text, speaker, language = describe_row(row.values, source.columns)
        yield SourceRecording(split, f"{split}/{row.name}", row.audio, text, speaker, language)
    if not some:
        raise UserError(f"corpus.sources: expected rows in {source.label}, found none; check the split and the files")


def _synthesized(source: AudioSource, corpus: CorpusSection, folder: Path, seed: int) -> Iterator[SourceRecording]:
    from data_prep.sources.synthesis import VOICES, read_sentences, synthesize

    assert source.synthesis is not None
    sentences = read_sentences(source.synthesis.sentences)[: source.synthesis.limit]
    audio = folder / "audio" / source.label
    for row in synthesize(sentences, source.synthesis.voices or VOICES, audio, seed=seed):
        # By the sentence, so that no text is in two splits.
        split = "test" if hash_fraction(row["text"]) < corpus.synthesis_test_fraction else "train"
        yield SourceRecording(split, row["file_name"], str(audio / row["file_name"]), row["text"], row["speaker"])


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
