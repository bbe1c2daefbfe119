"""List the recordings of every kind of source, before any audio is decoded."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.sources.embedded_rows import copy_embedded_audio
from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import AUDIO_SUFFIXES
from recipes.core.errors import UserError
from recipes.schema.corpus_section import AudioSource, ColumnNames

_SPLIT_BY_NAME = {
    "train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test",
}  # fmt: skip
"""Names of sub-folders and of `datasets` splits, and the split that each one means."""


@dataclass(frozen=True)
class SourceRecording:
    """A recording that a source lists."""

    split: str
    """`train`, `validation` or `test`."""
    name: str
    """Name within the source; becomes a part of the utterance's id."""
    audio: str
    """Reference to the audio (`eval.audio.recordings`); empty if the row has no audio."""
    text: str | None = None
    speaker: str | None = None
    language: str | None = None


def check_distinct_names(sources: Sequence[AudioSource]) -> None:
    """Raise UserError when two sources have the same name: their ids and test sets would mix."""
    counts = Counter(source.label for source in sources)
    if duplicates := [name for name, count in counts.items() if count > 1]:
        raise UserError(
            f"corpus.sources: expected distinct names, found two sources called {duplicates[0]}; set `name` on one "
            "of them"
        )


def find_recordings(
    source: AudioSource, folder: Path | None = None, *, seed: int = 0, synthesis_test_fraction: float = 0.0
) -> Iterator[SourceRecording]:
    """List the recordings of one source.

    Args:
        source: The source. If it is synthetic, its speech is generated first; if its audio is embedded in rows, the
            audio is copied first.
        folder: Where generated and copied audio is written, below audio/SOURCE; needed for such sources only.
        seed: Seed of synthetic speech.
        synthesis_test_fraction: Fraction of the synthetic sentences that are used for testing.

    Raises UserError for a source that is missing or empty.
    """
    if source.synthesis is None and source.hub is None and source.parquet is None:
        yield from _list_folder(source)
        return
    assert folder is not None, "synthetic and embedded audio needs a folder"
    if source.synthesis is not None:
        yield from _synthesize_source(source, synthesis_test_fraction, folder, seed)
    else:
        yield from _list_embedded(source, folder)


def _list_folder(source: AudioSource) -> Iterator[SourceRecording]:
    root, key = (source.audiofolder, "audiofolder") if source.audiofolder else (source.audio, "audio")
    assert root is not None
    if not root.is_dir():
        raise UserError(
            f"corpus.sources.{key}: expected a folder at {root} ({root.absolute()}), found none; correct the path"
        )
    split_folders = {
        _SPLIT_BY_NAME[child.name]: child for child in sorted(root.iterdir()) if child.name in _SPLIT_BY_NAME
    }
    empty = True
    for split, folder in (split_folders or {"train": root}).items():
        rows = read_metadata(folder, "corpus.sources.audiofolder") if source.audiofolder else _list_audio_files(folder)
        for file_name, row in rows:
            empty = False
            yield SourceRecording(
                split if split_folders else source.split or split, f"{split}/{file_name}", str(folder / file_name),
                *describe_row(row, source.columns),
            )  # fmt: skip
    if empty:
        raise UserError(f"corpus.sources.{key}: expected audio under {root}, found none; check the folder")


def _list_audio_files(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of every audio file with an empty metadata row.

    Broken links are included, so that they are reported as refused recordings.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir():
            yield path.relative_to(folder).as_posix(), {}


def describe_row(row: dict[str, Any], columns: ColumnNames) -> tuple[str | None, str | None, str | None]:
    """Return text, speaker and language of a metadata row.

    Raises UserError when the recipe names a column that the row does not have.
    """
    values = []
    for default in ("text", "speaker", "language"):
        column = getattr(columns, default)
        if column is not None and column not in row:
            raise UserError(
                f"corpus.sources.columns.{default}: expected a column {column}, found {', '.join(row)}; correct the "
                "name"
            )
        value = row.get(column or default)
        values.append(str(value) if value not in (None, "") else None)
    return values[0], values[1], values[2]


def _list_embedded(source: AudioSource, folder: Path) -> Iterator[SourceRecording]:
    split: str = source.split or "train"
    if source.split is None and source.hub is not None:
        # `validation.clean` and `train[:1%]` are splits of `datasets`.
        split = _SPLIT_BY_NAME.get(source.hub.split.split("[")[0].split(".")[0], "train")
    empty = True
    for row in copy_embedded_audio(source, folder / "audio" / source.label):
        empty = False
        text, speaker, language = describe_row(row.values, source.columns)
        yield SourceRecording(split, f"{split}/{row.name}", row.audio, text, speaker, language)
    if empty:
        raise UserError(f"corpus.sources: expected rows in {source.label}, found none; check the split and the files")


def _synthesize_source(source: AudioSource, test_fraction: float, folder: Path, seed: int) -> Iterator[SourceRecording]:
    from data_prep.sources.synthesis import VOICES, read_sentences, synthesize

    assert source.synthesis is not None
    sentences = read_sentences(source.synthesis.sentences)[: source.synthesis.limit]
    audio = folder / "audio" / source.label
    for clip in synthesize(sentences, source.synthesis.voices or VOICES, audio, seed=seed):
        # The split is chosen by the sentence, so that the same text is never in two splits.
        split = "test" if hash_fraction(clip["text"]) < test_fraction else "train"
        file_name = clip["file_name"]
        yield SourceRecording(split, file_name, str(audio / file_name), clip["text"], clip["speaker"])


def hash_fraction(name: str) -> float:
    """Map a name to a number in [0, 1) by its SHA-256 hash, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
