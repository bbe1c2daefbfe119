"""What a folder of audio holds, found from file names, metadata and file headers, without decoding anything."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.discovery import SourceRecording, find_recordings
from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import AudioError, AudioReference, duration_of
from recipes.core.errors import UserError
from recipes.schema.corpus_section import AudioSource, ColumnNames

SAMPLED = 2000
"""File headers read at most, evenly spaced over the folder; durations of larger folders are estimates."""

METADATA = ("metadata.jsonl", "metadata.csv")

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text")
"""Names under which published data sets keep transcripts; the first that a metadata file has is taken."""


@dataclass(frozen=True)
class AudioSurvey:
    """What one folder holds."""

    source: AudioSource
    """The folder as a recipe names it: an audiofolder with metadata, or plain audio files."""
    recordings: Counter[str]
    """Number of recordings by split: train, validation, test."""
    seconds: tuple[float, ...]
    """Durations of the recordings that were sampled, in seconds, rising."""
    transcribed: int
    """Recordings with a transcript."""
    speakers: int
    """Distinct speakers named; 0 where the metadata names none."""
    languages: Counter[str]
    """Recordings by language code, where the metadata has a language column."""
    unreadable: tuple[str, ...]
    """Sampled files whose header cannot be read, with the reason."""

    @property
    def total(self) -> int:
        """Number of recordings."""
        return self.recordings.total()

    @property
    def median_seconds(self) -> float:
        """Median duration of a recording, s."""
        return statistics.median(self.seconds)

    @property
    def hours(self) -> float:
        """Duration of all recordings, h; scaled up from the sample."""
        return sum(self.seconds) / len(self.seconds) * self.total / 3600

    @property
    def has_test_transcripts(self) -> bool:
        """Whether what is going to be the test set has transcripts: nearly all recordings do."""
        return self.transcribed >= 0.9 * self.total

    def describe(self) -> str:
        """Return one sentence for the user and for the recipe's header."""
        named = ("train", "validation", "test")
        splits = ", ".join(f"{self.recordings[split]} {split}" for split in named if self.recordings[split])
        hours = f"{self.hours:.1f} h" if self.hours >= 1 else f"{60 * self.hours:.1f} minutes"
        about = "about " if len(self.seconds) + len(self.unreadable) < self.total else ""
        text = (
            f"{self.source.place}: {self.total} recordings ({splits}), {about}{hours}, {self.seconds[0]:.1f} to "
            f"{self.seconds[-1]:.1f} s each (median {self.median_seconds:.1f})"
        )
        text += f"; {self.transcribed} with a transcript" if self.transcribed else "; no transcripts"
        text += f"; {self.speakers} speakers" if self.speakers else "; no speakers named"
        if self.languages:
            text += f"; languages {', '.join(f'{code} ({count})' for code, count in self.languages.most_common())}"
        if self.unreadable:
            text += f"; {len(self.unreadable)} files cannot be read, the first: {self.unreadable[0]}"
        return text


def survey_audio(folder: Path) -> AudioSurvey:
    """Look at a folder of audio: metadata where there is any, the headers of up to SAMPLED files.

    Raises UserError where the folder does not exist or holds no audio that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"--audio: expected a folder at {folder} ({folder.absolute()}), found none; correct the path")
    source = _source(folder)
    recordings = list(find_recordings(source))
    seconds, unreadable = _durations(recordings)
    if not seconds:
        raise UserError(f"--audio: expected audio that can be read under {folder}, found none: {unreadable[0]}")
    return AudioSurvey(
        source=source,
        recordings=Counter(recording.split for recording in recordings),
        seconds=tuple(sorted(seconds)),
        transcribed=sum(recording.text is not None for recording in recordings),
        speakers=len({recording.speaker for recording in recordings} - {None}),
        languages=Counter(recording.language for recording in recordings if recording.language),
        unreadable=tuple(unreadable),
    )


def _source(folder: Path) -> AudioSource:
    """Return the folder as a recipe names it: an audiofolder where it, or a folder in it, has metadata."""
    places = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    listed = [place for place in places if any((place / name).is_file() for name in METADATA)]
    if not listed:
        return AudioSource(audio=folder)
    _, first_row = next(read_metadata(listed[0], "--audio"), ("", {}))
    column = next((name for name in TEXT_COLUMNS if name in first_row), None)
    return AudioSource(audiofolder=folder, columns=ColumnNames(text=None if column == "text" else column))


def _durations(recordings: Sequence[SourceRecording]) -> tuple[list[float], list[str]]:
    """Return durations in seconds of evenly spaced recordings, and what is wrong with those that have none."""
    step = max(1, len(recordings) // SAMPLED)
    seconds, unreadable = [], []
    for recording in recordings[::step][:SAMPLED]:
        try:
            seconds.append(duration_of(AudioReference.parse(recording.audio)))
        except AudioError as error:
            unreadable.append(f"{recording.audio}: {error}")
    return seconds, unreadable
