"""What a folder of audio holds, found from file names, metadata and file headers, without decoding anything."""

import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from data_prep.sources.discovery import SourceRecording, find_recordings
from data_prep.survey.metadata_survey import METADATA, TEXT_COLUMNS, metadata_file, text_column
from eval.audio.recordings import AUDIO_SUFFIXES, AudioError, AudioReference, duration_of
from recipes.core.errors import UserError
from recipes.schema.corpus_section import AudioSource, ColumnNames, CorpusSection

SAMPLED = 2000
"""File headers read at most, evenly spaced over the folder; durations of larger folders are estimates."""

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
"""Sub-folders that set the split, and the split that each means (`data_prep.sources.discovery`)."""

MIN_SECONDS: float = CorpusSection.model_fields["min_seconds"].default
"""Shorter recordings are refused by the corpus stage."""

MAX_UNUSABLE = 0.5
"""Largest fraction of unusable recordings with which a folder is accepted."""

OTHER_FORMATS = frozenset({".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".mkv", ".mov", ".3gp"})
"""Suffixes of recordings that cannot be read here."""


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
    """Sampled recordings whose header cannot be read, or that are too short, with the reason."""
    remarks: tuple[str, ...] = ()
    """What is in the folder and not used."""

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
        minutes = f"{60 * self.hours:.1f} minutes" if 60 * self.hours >= 1 else f"{3600 * self.hours:.0f} s"
        hours = f"{self.hours:.1f} h" if self.hours >= 1 else minutes
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
        return "; ".join([text, *self.remarks])


def survey_folders(folders: Sequence[Path]) -> list[AudioSurvey]:
    """Look at one or more folders of audio; those of the same name get a name of their own as sources.

    Raises UserError as `survey_audio` does, and where one folder is, or lies within, another.
    """
    for index, folder in enumerate(folders):
        for other in folders[:index]:
            paths = folder.resolve(), other.resolve()
            if paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0]):
                raise UserError(
                    f"--audio: expected folders that share no recordings, found {other} and {folder}; give one of them"
                )
    surveys: list[AudioSurvey] = []
    for folder in folders:
        survey = survey_audio(folder)
        taken = {earlier.source.label for earlier in surveys}
        if (name := _free_name(survey.source.label, folder.resolve(), taken)) != survey.source.label:
            survey = replace(survey, source=survey.source.model_copy(update={"name": name}))
        surveys.append(survey)
    return surveys


def _free_name(label: str, folder: Path, taken: set[str]) -> str:
    """Return the name of a source that no other has: its label, or its folder's name, perhaps with that above it."""
    names = [label] if label not in ("", "..") else [folder.name or "audio"]
    names += [folder.name, f"{folder.parent.name}-{folder.name}"]
    numbered = (f"{folder.name}-{number}" for number in count(2))
    return next(name for name in chain(names, numbered) if name and name not in taken)


def survey_audio(folder: Path) -> AudioSurvey:
    """Look at a folder of audio: metadata where there is any, the headers of up to SAMPLED files.

    Raises UserError where the folder does not exist, its metadata cannot be used, or most of its audio cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--audio: expected a folder at {folder} ({folder.absolute()}), found none; correct the path")
    source, remarks = _source(folder)
    try:
        recordings = list(find_recordings(source))
    except UserError as error:  # the only one that is left: no recordings
        raise UserError(
            f"--audio: expected audio under {folder}, found none; it may be "
            f"{', '.join(suffix[1:] for suffix in sorted(AUDIO_SUFFIXES))}; convert other formats, or correct the path"
        ) from error
    if (name := next((item.audio for item in recordings if not is_utf8(item.audio)), None)) is not None:
        raise UserError(f"--audio: expected paths in UTF-8, found {name!a}; rename it")
    seconds, unreadable = _durations(recordings)
    if len(unreadable) > MAX_UNUSABLE * (len(seconds) + len(unreadable)):
        raise UserError(
            f"--audio: expected audio that can be read under {folder}, found {len(unreadable)} of "
            f"{len(seconds) + len(unreadable)} recordings that cannot, the first: {unreadable[0]}; repair or remove "
            "them"
        )
    return AudioSurvey(
        source=source,
        recordings=Counter(recording.split for recording in recordings),
        seconds=tuple(sorted(seconds)),
        transcribed=sum(recording.text is not None for recording in recordings),
        speakers=len({recording.speaker for recording in recordings} - {None}),
        languages=Counter(recording.language for recording in recordings if recording.language),
        unreadable=tuple(unreadable),
        remarks=remarks,
    )


def is_utf8(path: str) -> bool:
    """Return whether a path can be written to files: its bytes on disk are UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _source(folder: Path) -> tuple[AudioSource, tuple[str, ...]]:
    """Return the folder as a recipe names it, and what is in it and not used.

    It is an audiofolder where it, or each split folder in it, has metadata. Raises UserError for any other mixture.
    """
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    splits = [child for child in children if child.name in SPLIT_FOLDERS]
    _check_layout(folder, children, splits)
    remarks = []
    if splits and len(children) > len(splits):
        others = ", ".join(child.name for child in children if child not in splits)
        remarks.append(f"beside {', '.join(child.name for child in splits)}, these folders are not used: {others}")
    places = splits or [folder]
    if metadata_file(places[0]) is None:
        other = sum(path.suffix.lower() in OTHER_FORMATS for place in places for path in place.rglob("*"))
        remarks += [f"{other} files of other formats, such as m4a, are not used: convert them"] if other else []
        return AudioSource(audio=folder), tuple(remarks)
    column, columns = text_column(places)
    if column is None:
        remarks.append(f"of the columns {', '.join(columns)} none is called {', '.join(TEXT_COLUMNS)}")
    return AudioSource(audiofolder=folder, columns=ColumnNames(text=None if column == "text" else column)), tuple(
        remarks
    )


def _check_layout(folder: Path, children: Sequence[Path], splits: Sequence[Path]) -> None:
    """Raise UserError where the metadata is in some of the places only in which it is looked for."""
    for index, split in enumerate(splits):
        for other in splits[:index]:
            if SPLIT_FOLDERS[split.name] == SPLIT_FOLDERS[other.name]:
                raise UserError(
                    f"--audio: expected one {split.name} split, found {other} and {split}; join the folders"
                )
    listed = [place for place in splits or [folder] if metadata_file(place)]
    if splits and listed and len(listed) < len(splits):
        bare = next(place for place in splits if place not in listed)
        raise UserError(
            f"--audio: expected {' or '.join(METADATA)} in {bare}, as in {listed[0]}, found neither; add one, or "
            "remove the other"
        )
    if splits and not listed and (file := metadata_file(folder)):
        raise UserError(
            f"--audio: expected metadata in each of {', '.join(str(place) for place in splits)}, found only {file}; "
            "write a file for each of them, with file names relative to it"
        )
    if not splits and not listed and (deeper := [child for child in children if metadata_file(child)]):
        raise UserError(
            f"--audio: expected {' or '.join(METADATA)} in {folder} or in its folders train, validation and test, "
            f"found it in {deeper[0]}; give --audio {shlex.join(map(str, deeper))}"
        )


def _durations(recordings: Sequence[SourceRecording]) -> tuple[list[float], list[str]]:
    """Return durations in seconds of evenly spaced recordings, and what is wrong with those that have none."""
    step = max(1, len(recordings) // SAMPLED)
    seconds, unreadable = [], []
    for recording in recordings[::step][:SAMPLED]:
        try:
            length = duration_of(AudioReference.parse(recording.audio))
            if length < MIN_SECONDS:
                raise AudioError(f"{length:g} s long, less than {MIN_SECONDS} s")
            seconds.append(length)
        except AudioError as error:
            unreadable.append(f"{recording.audio}: {error}")
    return seconds, unreadable
